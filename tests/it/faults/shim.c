/* Loaded before libc: a file system that is slow, full or old, and signals at every call.
 *
 * FAULT_SHORT=N     pwrite writes at most N bytes, pread and read give at most N; each second call of any kind is
 *                   interrupted (EINTR) instead
 * FAULT_SPACE=N     after N written bytes there is no space (ENOSPC)
 * FAULT_NO_TMPFILE  no files without a name (EOPNOTSUPP)
 * FAULT_LOG=FILE    a byte for every fault
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_long calls, space_used;

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static void note(void) {
    const char *path = getenv("FAULT_LOG");
    int log = path ? syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666) : -1;
    if (log >= 0) {
        syscall(SYS_write, log, ".", 1);
        syscall(SYS_close, log);
    }
}

static int interrupted(void) {
    if (!number("FAULT_SHORT") || calls++ % 2)
        return 0;
    note();
    errno = EINTR;
    return 1;
}

static size_t shortened(size_t count) {
    long most = number("FAULT_SHORT");
    if (!most || count <= (size_t)most)
        return count;
    note();
    return most;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    REAL(pwrite64);
    if (interrupted())
        return -1;
    count = shortened(count);
    if (getenv("FAULT_SPACE")) {
        long left = number("FAULT_SPACE") - space_used;
        if (left <= 0) {
            note();
            errno = ENOSPC;
            return -1;
        }
        count = count < (size_t)left ? count : (size_t)left;
        space_used += count;
    }
    return real(fd, bytes, count, at);
}

ssize_t pread64(int fd, void *bytes, size_t count, off64_t at) {
    REAL(pread64);
    return interrupted() ? -1 : real(fd, bytes, shortened(count), at);
}

ssize_t read(int fd, void *bytes, size_t count) {
    REAL(read);
    return interrupted() ? -1 : real(fd, bytes, shortened(count));
}

int fsync(int fd) {
    REAL(fsync);
    return interrupted() ? -1 : real(fd);
}

int ftruncate64(int fd, off64_t length) {
    REAL(ftruncate64);
    return interrupted() ? -1 : real(fd, length);
}

int linkat(int from, const char *path, int to, const char *name, int flags) {
    REAL(linkat);
    return interrupted() ? -1 : real(from, path, to, name, flags);
}

int renameat(int from, const char *path, int to, const char *name) {
    REAL(renameat);
    return interrupted() ? -1 : real(from, path, to, name);
}

int unlinkat(int directory, const char *name, int flags) {
    REAL(unlinkat);
    return interrupted() ? -1 : real(directory, name, flags);
}

int openat(int directory, const char *path, int flags, ...) {
    REAL(openat);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    if ((flags & O_TMPFILE) == O_TMPFILE && getenv("FAULT_NO_TMPFILE")) {
        note();
        errno = EOPNOTSUPP;
        return -1;
    }
    return interrupted() ? -1 : real(directory, path, flags, mode);
}
