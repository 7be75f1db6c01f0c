/*
 * The heat equation on the unit square, cold edges, backward Euler in time, conjugate gradient in each step.
 *
 * Ranks hold rectangles of one grid and exchange their edges each iteration. Rank 0 then gathers the answer, computes
 * it again alone, and compares; every rank also passes 4 MiB round a ring, which shared-memory transports carry
 * otherwise than the small edges. Exit status 0 only if all of it agrees.
 *
 * usage: solver [CELLS_PER_SIDE]
 */
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS = 4, RING_BYTES = 4 << 20, MAX_ITERATIONS = 2000 };
static const double STIFFNESS = 25.0; /* time step over cell size squared: far beyond what an explicit step survives */
static const double TOLERANCE = 1e-10;

/* One rank's rectangle of the grid. Fields have a margin of one cell, so cell (row, column) begins at 1. */
struct patch {
    MPI_Comm comm;
    int side;                     /* cells per side of the whole grid */
    int rows, columns;            /* cells of this patch */
    int first_row, first_column;  /* where the patch begins in the whole grid */
    int up, down, left, right;    /* neighbours; MPI_PROC_NULL at the edge */
    MPI_Datatype column;
};

static size_t at(const struct patch *p, int row, int column)
{
    return (size_t)row * (size_t)(p->columns + 2) + (size_t)column;
}

static double *new_field(const struct patch *p)
{
    double *field = calloc((size_t)(p->rows + 2) * (size_t)(p->columns + 2), sizeof *field);
    if (!field) {
        fprintf(stderr, "solver: out of memory\n");
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    return field;
}

/* Cuts `cells` into `parts`; gives where part `index` begins. */
static int cut(int cells, int parts, int index)
{
    return (int)((long)cells * index / parts);
}

static struct patch new_patch(MPI_Comm comm, int side)
{
    int ranks, rank, dims[2] = {0, 0}, periods[2] = {0, 0}, place[2];
    struct patch p = {.side = side};

    MPI_Comm_size(comm, &ranks);
    MPI_Dims_create(ranks, 2, dims);
    MPI_Cart_create(comm, 2, dims, periods, 0, &p.comm);
    MPI_Comm_rank(p.comm, &rank);
    MPI_Cart_coords(p.comm, rank, 2, place);
    MPI_Cart_shift(p.comm, 0, 1, &p.up, &p.down);
    MPI_Cart_shift(p.comm, 1, 1, &p.left, &p.right);
    p.first_row = cut(side, dims[0], place[0]);
    p.first_column = cut(side, dims[1], place[1]);
    p.rows = cut(side, dims[0], place[0] + 1) - p.first_row;
    p.columns = cut(side, dims[1], place[1] + 1) - p.first_column;
    MPI_Type_vector(p.rows, 1, p.columns + 2, MPI_DOUBLE, &p.column);
    MPI_Type_commit(&p.column);
    return p;
}

static void free_patch(struct patch *p)
{
    MPI_Type_free(&p->column);
    MPI_Comm_free(&p->comm);
}

/* Fills the margin of `u` with the neighbours' edges. */
static void exchange(const struct patch *p, double *u)
{
    MPI_Request requests[8];

    MPI_Irecv(&u[at(p, 0, 1)], p->columns, MPI_DOUBLE, p->up, 0, p->comm, &requests[0]);
    MPI_Irecv(&u[at(p, p->rows + 1, 1)], p->columns, MPI_DOUBLE, p->down, 1, p->comm, &requests[1]);
    MPI_Irecv(&u[at(p, 1, 0)], 1, p->column, p->left, 2, p->comm, &requests[2]);
    MPI_Irecv(&u[at(p, 1, p->columns + 1)], 1, p->column, p->right, 3, p->comm, &requests[3]);
    MPI_Isend(&u[at(p, p->rows, 1)], p->columns, MPI_DOUBLE, p->down, 0, p->comm, &requests[4]);
    MPI_Isend(&u[at(p, 1, 1)], p->columns, MPI_DOUBLE, p->up, 1, p->comm, &requests[5]);
    MPI_Isend(&u[at(p, 1, p->columns)], 1, p->column, p->right, 2, p->comm, &requests[6]);
    MPI_Isend(&u[at(p, 1, 1)], 1, p->column, p->left, 3, p->comm, &requests[7]);
    MPI_Waitall(8, requests, MPI_STATUSES_IGNORE);
}

/* out = (1 - dt Laplace) u */
static void apply(const struct patch *p, double *u, double *out)
{
    exchange(p, u);
    for (int row = 1; row <= p->rows; row++)
        for (int column = 1; column <= p->columns; column++) {
            size_t here = at(p, row, column);
            double around = u[here - 1] + u[here + 1] + u[at(p, row - 1, column)] + u[at(p, row + 1, column)];
            out[here] = u[here] + STIFFNESS * (4.0 * u[here] - around);
        }
}

static double dot(const struct patch *p, const double *a, const double *b)
{
    double mine = 0.0, all;

    for (int row = 1; row <= p->rows; row++)
        for (int column = 1; column <= p->columns; column++)
            mine += a[at(p, row, column)] * b[at(p, row, column)];
    MPI_Allreduce(&mine, &all, 1, MPI_DOUBLE, MPI_SUM, p->comm);
    return all;
}

/* to = a x + b y */
static void combine(const struct patch *p, double *to, double a, const double *x, double b, const double *y)
{
    for (int row = 1; row <= p->rows; row++)
        for (int column = 1; column <= p->columns; column++) {
            size_t here = at(p, row, column);
            to[here] = a * x[here] + b * y[here];
        }
}

/* One implicit time step: solves (1 - dt Laplace) u_new = u in place. Gives the relative residual. */
static double step(const struct patch *p, double *u, int *iterations)
{
    double *residual = new_field(p), *direction = new_field(p), *image = new_field(p);
    double start = sqrt(dot(p, u, u));

    apply(p, u, image);
    combine(p, residual, 1.0, u, -1.0, image);
    combine(p, direction, 1.0, residual, 0.0, residual);
    double square = dot(p, residual, residual);
    for (int i = 0; i < MAX_ITERATIONS && sqrt(square) > TOLERANCE * start; i++, ++*iterations) {
        apply(p, direction, image);
        double along = square / dot(p, direction, image);
        combine(p, u, 1.0, u, along, direction);
        combine(p, residual, 1.0, residual, -along, image);
        double next = dot(p, residual, residual);
        combine(p, direction, 1.0, residual, next / square, direction);
        square = next;
    }
    free(residual);
    free(direction);
    free(image);
    return sqrt(square) / start;
}

/* Two warm bumps, then all time steps. The caller frees the field. */
static double *solve(const struct patch *p, double *residual, int *iterations)
{
    double *u = new_field(p);

    for (int row = 1; row <= p->rows; row++)
        for (int column = 1; column <= p->columns; column++) {
            double y = (p->first_row + row) / (p->side + 1.0), x = (p->first_column + column) / (p->side + 1.0);
            u[at(p, row, column)] = exp(-200.0 * ((x - 0.3) * (x - 0.3) + (y - 0.5) * (y - 0.5))) +
                                    0.5 * exp(-900.0 * ((x - 0.5) * (x - 0.5) + (y - 0.52) * (y - 0.52)));
        }
    *iterations = 0;
    for (int i = 0; i < STEPS; i++)
        *residual = step(p, u, iterations);
    return u;
}

/* Copies a patch without its margin into its place in the whole grid, or out of a densely packed one. */
static void place(double *whole, int side, const double *cells, const int extent[4])
{
    for (int row = 0; row < extent[2]; row++)
        memcpy(&whole[(size_t)(extent[0] + row) * (size_t)side + (size_t)extent[1]],
               &cells[(size_t)row * (size_t)extent[3]], (size_t)extent[3] * sizeof *whole);
}

/* Gathers the whole grid on rank 0 (NULL elsewhere). */
static double *gather(const struct patch *p, const double *u)
{
    int rank, ranks, extent[4] = {p->first_row, p->first_column, p->rows, p->columns};
    int count = p->rows * p->columns;
    double *cells = malloc((size_t)p->side * (size_t)p->side * sizeof *cells), *whole = NULL;

    MPI_Comm_rank(p->comm, &rank);
    MPI_Comm_size(p->comm, &ranks);
    for (int row = 0; row < p->rows; row++)
        memcpy(&cells[(size_t)row * (size_t)p->columns], &u[at(p, row + 1, 1)], (size_t)p->columns * sizeof *cells);
    if (rank != 0) {
        MPI_Send(extent, 4, MPI_INT, 0, 4, p->comm);
        MPI_Send(cells, count, MPI_DOUBLE, 0, 5, p->comm);
    } else {
        whole = malloc((size_t)p->side * (size_t)p->side * sizeof *whole);
        place(whole, p->side, cells, extent);
        for (int other = 1; other < ranks; other++) {
            MPI_Recv(extent, 4, MPI_INT, other, 4, p->comm, MPI_STATUS_IGNORE);
            MPI_Recv(cells, extent[2] * extent[3], MPI_DOUBLE, other, 5, p->comm, MPI_STATUS_IGNORE);
            place(whole, p->side, cells, extent);
        }
    }
    free(cells);
    return whole;
}

/* Every rank passes its block to the next one and knows what must arrive. */
static int ring(int rank, int ranks)
{
    unsigned char *sent = malloc(RING_BYTES), *got = malloc(RING_BYTES);
    int before = (rank + ranks - 1) % ranks, wrong = 0;

    for (size_t i = 0; i < RING_BYTES; i++)
        sent[i] = (unsigned char)((size_t)(rank + 1) * 31 + i * 7);
    MPI_Sendrecv(sent, RING_BYTES, MPI_BYTE, (rank + 1) % ranks, 6, got, RING_BYTES, MPI_BYTE, before, 6, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
    for (size_t i = 0; i < RING_BYTES; i++)
        wrong |= got[i] != (unsigned char)((size_t)(before + 1) * 31 + i * 7);
    free(sent);
    free(got);
    return !wrong;
}

/* Rank 0 alone computes the same again; gives the largest difference between the two answers. */
static double check_serial(const double *whole, int side, double *seconds)
{
    double started = MPI_Wtime(), residual, largest = 0.0;
    int iterations;
    struct patch alone = new_patch(MPI_COMM_SELF, side);
    double *u = solve(&alone, &residual, &iterations);

    *seconds = MPI_Wtime() - started;
    for (int row = 0; row < side; row++)
        for (int column = 0; column < side; column++)
            largest = fmax(largest, fabs(whole[(size_t)row * (size_t)side + (size_t)column] -
                                         u[at(&alone, row + 1, column + 1)]));
    free(u);
    free_patch(&alone);
    return largest;
}

int main(int argc, char **argv)
{
    int rank, ranks, length, iterations, good = 1, side = argc > 1 ? atoi(argv[1]) : 768;
    double residual, serial_seconds;
    char name[MPI_MAX_PROCESSOR_NAME] = "", *names = NULL;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (side < 8 || side > 16384 || ranks > side) {
        fprintf(stderr, "usage: solver [CELLS_PER_SIDE]   (8 to 16384, and no fewer than ranks)\n");
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    MPI_Get_processor_name(name, &length);
    names = calloc((size_t)ranks, sizeof name);
    MPI_Gather(name, sizeof name, MPI_CHAR, names, sizeof name, MPI_CHAR, 0, MPI_COMM_WORLD);

    double started = MPI_Wtime();
    struct patch p = new_patch(MPI_COMM_WORLD, side);
    double *u = solve(&p, &residual, &iterations);
    double seconds = MPI_Wtime() - started;
    double *whole = gather(&p, u);
    int passed = ring(rank, ranks), all_passed;
    MPI_Reduce(&passed, &all_passed, 1, MPI_INT, MPI_LAND, 0, MPI_COMM_WORLD);

    if (rank == 0) {
        printf("heat equation: %d x %d cells, %d implicit steps\n", side, side, STEPS);
        printf("ranks: %d\n", ranks);
        for (int i = 0; i < ranks; i++)
            printf("  rank %d on %s\n", i, names + (size_t)i * sizeof name);
        printf("residual: %.3e after %d iterations, %.2f s\n", residual, iterations, seconds);
        double largest = check_serial(whole, side, &serial_seconds);
        printf("serial answer: largest difference %.1e, %.2f s\n", largest, serial_seconds);
        printf("ring of 4 MiB messages: %s\n", all_passed ? "ok" : "WRONG");
        good = all_passed && residual <= TOLERANCE && largest <= 1e-9;
        printf("checked: %s\n", good ? "ok" : "WRONG");
    }
    MPI_Bcast(&good, 1, MPI_INT, 0, MPI_COMM_WORLD);
    free(whole);
    free(u);
    free(names);
    free_patch(&p);
    MPI_Finalize();
    return good ? 0 : 1;
}
