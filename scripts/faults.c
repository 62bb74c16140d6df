/* Library for LD_PRELOAD: the n-th operation on a file below a folder fails, as on a bad or a full disk or a file server that is
   gone; or the n-th large allocation; or the clock jumps. Used by scripts/stress.

   FAULT_FOLDER: the folder. FAULT_KIND, of each process:
     disk    the n-th write, fsync, rename, mkdir, unlink or opening of a file for writing fails
     server  so does the n-th of these and of reads, openings, looks, listings and locks; but for those relative to a folder
     short   the n-th write or read does half of the bytes, which is no error: the caller has to do the rest
     slow    the n-th fsync takes FAULT_SECONDS
     memory  the n-th allocation of 64 KiB and more fails
     clock   the time of day is FAULT_SECONDS later, or earlier, from the n-th operation on
   FAULT_AT: n, from 1. FAULT_ERRNO: the error. FAULT_STAYS=1: all later operations are as the n-th.
   Allocations count from the first operation on the folder, before which there are imports alone. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define REAL(type, name, ...)                              \
    static type (*real)(__VA_ARGS__);                      \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
#define LARGE (64 * 1024)

static const char *folder, *kind;
static int at, number, stays, count, touched;
static double seconds;

__attribute__((constructor)) static void settings(void) {
    folder = getenv("FAULT_FOLDER");
    kind = getenv("FAULT_KIND");
    const char *text;
    at = (text = getenv("FAULT_AT")) ? atoi(text) : 0;
    number = (text = getenv("FAULT_ERRNO")) ? atoi(text) : EIO;
    stays = (text = getenv("FAULT_STAYS")) && *text == '1';
    seconds = (text = getenv("FAULT_SECONDS")) ? atof(text) : 0;
}

static int is(const char *name) { return folder && kind && !strcmp(kind, name); }

static int comes(void) {
    int now = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    return now == at || (stays && now > at);
}

/* Whether an operation on a file is below the folder. */
static int concerns(const char *path) {
    if (!folder || !path || strncmp(path, folder, strlen(folder))) return 0;
    touched = 1;
    return 1;
}

static int concerns_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return concerns(path);
}

static int fails(int changes) {
    if (is("clock")) comes();
    return ((changes && is("disk")) || is("server")) && comes() && (errno = number);
}

/* ---- operations on files ---- */

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (concerns_fd(fd)) {
        if (is("short") && comes()) return real(fd, data, size > 1 ? size / 2 : size);
        if (fails(1)) {
            real(fd, data, size / 2);
            errno = number;
            return -1;
        }
    }
    return real(fd, data, size);
}

size_t fwrite(const void *data, size_t size, size_t items, FILE *file) {
    REAL(size_t, "fwrite", const void *, size_t, size_t, FILE *);
    if (concerns_fd(fileno(file)) && fails(1)) {
        size_t written = real(data, size, items / 2, file);
        errno = number;
        return written;
    }
    return real(data, size, items, file);
}

ssize_t read(int fd, void *data, size_t size) {
    REAL(ssize_t, "read", int, void *, size_t);
    if (concerns_fd(fd)) {
        if (is("short") && comes()) return real(fd, data, size > 1 ? size / 2 : size);
        if (fails(0)) return -1;
    }
    return real(fd, data, size);
}

static int flush(int fd, int (*real)(int)) {
    if (concerns_fd(fd)) {
        if (is("slow") && comes()) nanosleep(&(struct timespec){(time_t)seconds, (seconds - (time_t)seconds) * 1e9}, NULL);
        if (fails(1)) return -1;
    }
    return real(fd);
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    return flush(fd, real);
}

int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    return flush(fd, real);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return (concerns(from) || concerns(to)) && fails(1) ? -1 : real(from, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    return concerns(path) && fails(1) ? -1 : real(path, mode);
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    return concerns(path) && fails(1) ? -1 : real(path);
}

static int opening(const char *path, int flags) { return concerns(path) && fails((flags & O_ACCMODE) != O_RDONLY); }

#define OPEN(name)                                                        \
    int name(const char *path, int flags, ...) {                          \
        REAL(int, #name, const char *, int, ...);                         \
        va_list rest;                                                     \
        va_start(rest, flags);                                            \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; \
        va_end(rest);                                                     \
        return opening(path, flags) ? -1 : real(path, flags, mode);       \
    }
OPEN(open)
OPEN(open64)

#define LOOK(name)                                         \
    int name(const char *path, struct stat64 *result) {    \
        REAL(int, #name, const char *, struct stat64 *);   \
        return opening(path, O_RDONLY) ? -1 : real(path, result); \
    }
LOOK(stat64)
LOOK(lstat64)

DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *);
    return opening(path, O_RDONLY) ? NULL : real(path);
}

int flock(int fd, int operation) {
    REAL(int, "flock", int, int);
    return concerns_fd(fd) && fails(0) ? -1 : real(fd, operation);
}

FILE *fopen(const char *path, const char *mode) {
    REAL(FILE *, "fopen", const char *, const char *);
    return opening(path, *mode == 'r' ? O_RDONLY : O_WRONLY) ? NULL : real(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
    REAL(FILE *, "fopen64", const char *, const char *);
    return opening(path, *mode == 'r' ? O_RDONLY : O_WRONLY) ? NULL : real(path, mode);
}

/* ---- memory ---- */

static int lacks(size_t size) { return size >= LARGE && touched && is("memory") && comes(); }

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);

void *malloc(size_t size) {
    if (lacks(size)) return errno = ENOMEM, NULL;
    return __libc_malloc(size);
}

void *calloc(size_t items, size_t size) {
    if (size && items > SIZE_MAX / size) return errno = ENOMEM, NULL;
    if (lacks(items * size)) return errno = ENOMEM, NULL;
    return __libc_calloc(items, size);
}

void *realloc(void *old, size_t size) {
    if (lacks(size)) return errno = ENOMEM, NULL;
    return __libc_realloc(old, size);
}

int posix_memalign(void **result, size_t alignment, size_t size) {
    if (lacks(size)) return ENOMEM;
    void *found = __libc_memalign(alignment, size);
    if (!found) return ENOMEM;
    *result = found;
    return 0;
}

/* ---- time ---- */

static int jumped(void) { return is("clock") && at && __atomic_load_n(&count, __ATOMIC_SEQ_CST) >= at; }

int clock_gettime(clockid_t clock, struct timespec *result) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int status = real(clock, result);
    if (!status && clock == CLOCK_REALTIME && jumped()) result->tv_sec += (time_t)seconds;
    return status;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *result, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    result->tv_sec = now.tv_sec;
    result->tv_usec = now.tv_nsec / 1000;
    return 0;
}
