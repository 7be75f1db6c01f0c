/* A file on a store with latency: mounts FILE over MOUNT_POINT, an empty file, through FUSE, and answers every read
 * request after MICROSECONDS, as many at a time as there are threads. One request carries up to 1 MiB.
 *
 * usage: slow_store FILE MOUNT_POINT MICROSECONDS      (as root; ends when it is unmounted)
 *
 * The kernel caches what was read, as it does for network file systems, and reads ahead as it does for them. On SIGUSR1
 * it prints "READS BYTES" since the last time.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 32, LONGEST = 1 << 20, NODE = FUSE_ROOT_ID };

static int device, file;
static struct stat status;
static long latency_us;
static atomic_ulong reads, bytes;

static void reply(uint64_t unique, int error, const void *content, size_t length) {
    struct fuse_out_header header = { sizeof header + length, -error, unique };
    struct iovec parts[] = { { &header, sizeof header }, { (void *)content, length } };
    if (writev(device, parts, length ? 2 : 1) < 0 && errno != ENOENT && errno != ENODEV)
        err(1, "reply");
}

static void wait_latency(void) {
    struct timespec time = { latency_us / 1000000, latency_us % 1000000 * 1000 };
    while (nanosleep(&time, &time))
        continue;
}

static void do_init(uint64_t unique, const struct fuse_init_in *in) {
    struct fuse_init_out out = { .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION };
    out.max_readahead = in->max_readahead;
    out.flags = in->flags & (FUSE_ASYNC_READ | FUSE_MAX_PAGES | FUSE_NO_OPEN_SUPPORT | FUSE_PARALLEL_DIROPS);
    out.max_background = 64;
    out.congestion_threshold = 48;
    out.max_write = LONGEST;
    out.max_pages = LONGEST / 4096;
    reply(unique, 0, &out, sizeof out);
}

static void do_getattr(uint64_t unique) {
    struct fuse_attr_out out = { .attr_valid = 3600 };
    out.attr = (struct fuse_attr){ .ino = NODE, .size = status.st_size, .blocks = status.st_blocks, .mode = S_IFREG | 0644,
                                   .mtime = status.st_mtim.tv_sec, .mtimensec = status.st_mtim.tv_nsec, .nlink = 1,
                                   .ctime = status.st_ctim.tv_sec, .ctimensec = status.st_ctim.tv_nsec, .blksize = 4096 };
    reply(unique, 0, &out, sizeof out);
}

static void do_read(uint64_t unique, const struct fuse_read_in *in, char *buffer) {
    wait_latency();
    ssize_t got = pread(file, buffer, in->size < LONGEST ? in->size : LONGEST, in->offset);
    atomic_fetch_add(&reads, 1);
    atomic_fetch_add(&bytes, got > 0 ? got : 0);
    reply(unique, got < 0 ? errno : 0, buffer, got < 0 ? 0 : got);
}

static void *serve(void *unused) {
    (void)unused;
    char *request = malloc(LONGEST + 4096), *buffer = malloc(LONGEST);
    if (!request || !buffer)
        err(1, "malloc");
    for (;;) {
        ssize_t length = read(device, request, LONGEST + 4096);
        if (length < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
            continue;
        if (length < 0)
            exit(errno == ENODEV ? 0 : 1);
        const struct fuse_in_header *header = (void *)request;
        const void *in = header + 1;
        switch (header->opcode) {
        case FUSE_INIT: do_init(header->unique, in); break;
        case FUSE_GETATTR: do_getattr(header->unique); break;
        case FUSE_READ: do_read(header->unique, in, buffer); break;
        case FUSE_FORGET: case FUSE_BATCH_FORGET: case FUSE_INTERRUPT: break;
        default: reply(header->unique, ENOSYS, NULL, 0);
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 4)
        errx(2, "usage: slow_store FILE MOUNT_POINT MICROSECONDS");
    latency_us = atol(argv[3]);
    if ((file = open(argv[1], O_RDONLY)) < 0 || fstat(file, &status))
        err(1, "%s", argv[1]);
    if ((device = open("/dev/fuse", O_RDWR)) < 0)
        err(1, "/dev/fuse");
    char data[128];
    snprintf(data, sizeof data, "fd=%d,rootmode=100644,user_id=0,group_id=0,allow_other", device);
    if (mount("slow_store", argv[2], "fuse", MS_RDONLY | MS_NOSUID | MS_NODEV, data))
        err(1, "mount on %s", argv[2]);
    sigset_t counted;
    sigemptyset(&counted);
    sigaddset(&counted, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &counted, NULL);
    for (int n = 0; n < THREADS; n++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, NULL))
            errx(1, "no threads");
    }
    puts("ready");
    fflush(stdout);
    for (int number; !sigwait(&counted, &number);) {
        printf("%lu %lu\n", atomic_exchange(&reads, 0), atomic_exchange(&bytes, 0));
        fflush(stdout);
    }
    return 0;
}
