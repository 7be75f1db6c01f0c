/* Does one thing to a file system, as often as asked, and says for each pass when it began and ended (seconds of
 * CLOCK_MONOTONIC) and what processor time its control group spent meanwhile.
 *
 * usage: probe PASSES CPU_STAT ACTION ARGUMENT...      (CPU_STAT: a cpu.stat, or "-")
 *
 * Linked statically: starting it touches no file of what is measured, and its start is in no figure. The last line that
 * it prints is "device MINOR" of the directory or file that it worked on.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 128 << 10, MAX_THREADS = 64 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static double cpu(const char *path) {
    unsigned long long us = 0;
    FILE *file = strcmp(path, "-") ? fopen(path, "r") : NULL;
    if (file) {
        if (fscanf(file, "usage_usec %llu", &us) != 1)
            errx(1, "%s: no usage_usec", path);
        fclose(file);
    }
    return us / 1e6;
}

static void *allocate(size_t bytes) {
    void *memory = malloc(bytes);
    if (!memory)
        err(1, "malloc");
    return memory;
}

static unsigned long number(const char *text) {
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (!*text || *end)
        errx(1, "%s: not a number", text);
    return value;
}

static dev_t device;

/* What `find -xdev -ls` asks: every entry's attributes and every link's target. */
static void walk(const char *path) {
    DIR *dir = opendir(path);
    if (!dir) {
        if (errno == EACCES)
            return;
        err(1, "%s", path);
    }
    struct dirent *entry;
    while ((errno = 0, entry = readdir(dir))) {
        struct stat stat;
        char inner[PATH_MAX], target[PATH_MAX];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name) >= (int)sizeof inner)
            errx(1, "%s: too deep", path);
        if (fstatat(dirfd(dir), entry->d_name, &stat, AT_SYMLINK_NOFOLLOW))
            err(1, "%s", inner);
        if (stat.st_dev != device)
            continue;
        if (S_ISLNK(stat.st_mode) && readlinkat(dirfd(dir), entry->d_name, target, sizeof target) < 0)
            err(1, "%s", inner);
        if (S_ISDIR(stat.st_mode))
            walk(inner);
    }
    if (errno)
        err(1, "%s", path);
    closedir(dir);
}

static void read_file(const char *path, char *buffer) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        if (errno == EACCES)
            return;
        err(1, "%s", path);
    }
    ssize_t got;
    while ((got = read(fd, buffer, CHUNK)) > 0)
        ;
    if (got < 0)
        err(1, "%s", path);
    close(fd);
}

/* What to read: paths relative to a directory, one a line. */
static char **files;
static size_t file_count, next_file;

static void load_list(const char *dir, const char *list) {
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    FILE *file = fopen(list, "r");
    if (!file)
        err(1, "%s", list);
    while ((length = getline(&line, &room, file)) > 1) {
        line[length - 1] = 0;
        files = realloc(files, (file_count + 1) * sizeof *files);
        if (!files || asprintf(&files[file_count++], "%s/%s", dir, line) < 0)
            err(1, "%s", list);
    }
    free(line);
    fclose(file);
}

static void *read_files(void *unused) {
    (void)unused;
    char *buffer = allocate(CHUNK);
    size_t at;
    while ((at = __atomic_fetch_add(&next_file, 1, __ATOMIC_RELAXED)) < file_count)
        read_file(files[at], buffer);
    free(buffer);
    return NULL;
}

static const char *random_path;
static size_t random_size, random_count;
static uint64_t random_seed;

static void *read_random(void *number_of_thread) {
    uint64_t state = random_seed + (uintptr_t)number_of_thread * 0x9e3779b97f4a7c15;
    char *buffer = allocate(random_size);
    struct stat stat;
    int fd = open(random_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &stat))
        err(1, "%s", random_path);
    /* The kernel must not read ahead of what is random by nature. */
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    size_t places = (size_t)stat.st_size / random_size;
    if (!places)
        errx(1, "%s: too small", random_path);
    for (size_t i = 0; i < random_count; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        if (pread(fd, buffer, random_size, (off_t)(state % places * random_size)) < 0)
            err(1, "%s", random_path);
    }
    close(fd);
    free(buffer);
    return NULL;
}

static void in_threads(unsigned long threads, void *(*body)(void *)) {
    pthread_t ids[MAX_THREADS];
    if (threads < 1 || threads > MAX_THREADS)
        errx(1, "%lu threads", threads);
    for (uintptr_t i = 0; i < threads; i++)
        if ((errno = pthread_create(&ids[i], NULL, body, (void *)(i + 1))))
            err(1, "pthread_create");
    for (unsigned long i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
}

static void stat_absent(const char *dir, unsigned long count) {
    int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        err(1, "%s", dir);
    for (unsigned long i = 0; i < count; i++) {
        struct stat stat;
        char name[32];
        snprintf(name, sizeof name, "absent-%lu", i);
        if (!fstatat(fd, name, &stat, 0) || errno != ENOENT)
            errx(1, "%s/%s is there", dir, name);
    }
    close(fd);
}

static void list(const char *path) {
    DIR *dir = opendir(path);
    if (!dir)
        err(1, "%s", path);
    while (readdir(dir))
        ;
    closedir(dir);
}

static void touch_pages(const char *path) {
    struct stat stat;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &stat))
        err(1, "%s", path);
    volatile char *bytes = mmap(NULL, stat.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED)
        err(1, "%s", path);
    for (off_t at = 0; at < stat.st_size; at += 4096)
        (void)bytes[at];
    munmap((void *)bytes, stat.st_size);
    close(fd);
}

static void run(char **command) {
    int status;
    pid_t child = vfork();
    if (child < 0)
        err(1, "vfork");
    if (!child) {
        execvp(*command, command);
        _exit(127);
    }
    if (waitpid(child, &status, 0) < 0 || status)
        errx(1, "%s: status %d", *command, status);
}

static void act(const char *action, char **arguments, int count, int pass) {
#define IS(name, wanted) (!strcmp(action, name) && count == (wanted))
    if (IS("walk", 1)) {
        walk(arguments[0]);
    } else if (IS("absent", 2)) {
        stat_absent(arguments[0], number(arguments[1]));
    } else if (IS("list", 1)) {
        list(arguments[0]);
    } else if (IS("read", 3)) { /* DIRECTORY LIST READERS */
        next_file = 0;
        in_threads(number(arguments[2]), read_files);
    } else if (IS("file", 1)) {
        char *buffer = allocate(CHUNK);
        read_file(arguments[0], buffer);
        free(buffer);
    } else if (IS("random", 4)) { /* FILE SIZE COUNT THREADS */
        random_path = arguments[0], random_size = number(arguments[1]), random_count = number(arguments[2]);
        random_seed = 20260101 + pass;
        in_threads(number(arguments[3]), read_random);
    } else if (IS("map", 1)) {
        touch_pages(arguments[0]);
    } else if (!strcmp(action, "run") && count > 0) {
        run(arguments);
    } else {
        errx(1, "%s: no such action, or the wrong arguments", action);
    }
}

int main(int argc, char **argv) {
    if (argc < 5)
        errx(1, "usage: probe PASSES CPU_STAT ACTION ARGUMENT...");
    const char *place = strcmp(argv[3], "run") ? argv[4] : "/";
    struct stat stat;
    int passes = (int)number(argv[1]);
    /* Where the walk may go; of all that is measured only this is asked before the clock starts. */
    if (lstat(place, &stat))
        err(1, "%s", place);
    device = stat.st_dev;
    if (!strcmp(argv[3], "read") && argc > 5)
        load_list(argv[4], argv[5]);
    for (int pass = 0; pass < passes; pass++) {
        double spent = cpu(argv[2]), begin = now();
        act(argv[3], argv + 4, argc - 4, pass);
        double end = now();
        printf("pass %.6f %.6f %.6f\n", begin, end, cpu(argv[2]) - spent);
    }
    printf("device %u\n", minor(device));
    return 0;
}
