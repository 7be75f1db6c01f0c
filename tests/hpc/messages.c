/*
 * Ranks send each other messages of 4 MiB in pairs, forth and back, and look at every byte. Messages of this size go
 * from memory to memory (process_vm_readv) where a library can, and in pieces through shared memory where it cannot.
 *
 * Each rank prints "rank R of N: M messages ok". usage: messages [ROUNDS]
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BYTES = 4 << 20 };

int main(int argc, char **argv)
{
    int rank, ranks, rounds = argc > 1 ? atoi(argv[1]) : 8, received = 0;
    unsigned char *out = malloc(BYTES), *in = malloc(BYTES);

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    int peer = rank ^ 1;
    for (int round = 0; round < rounds && peer < ranks; round++) {
        memset(out, rank + round + 1, BYTES);
        memset(in, 0, BYTES);
        MPI_Sendrecv(out, BYTES, MPI_BYTE, peer, round, in, BYTES, MPI_BYTE, peer, round, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE);
        for (int at = 0; at < BYTES; at++) {
            if (in[at] != (unsigned char)(peer + round + 1)) {
                fprintf(stderr, "messages: byte %d of round %d is wrong\n", at, round);
                MPI_Abort(MPI_COMM_WORLD, 3);
            }
        }
        received++;
    }
    MPI_Barrier(MPI_COMM_WORLD);
    printf("rank %d of %d: %d messages ok\n", rank, ranks, received);
    fflush(stdout);
    MPI_Finalize();
    return 0;
}
