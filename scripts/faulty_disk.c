/* Library for LD_PRELOAD: the n-th operation on a file below a folder fails, as on a bad or a full disk. Used by scripts/stress.

   FAULT_FOLDER: the folder. FAULT_AT: n, from 1, of each process. FAULT_ERRNO: the error; 0 for a short write of half of the
   bytes, which is no error: the caller has to write the rest. FAULT_STAYS=1: all later operations fail too. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int count;

static int fails(const char *path) {
    const char *folder = getenv("FAULT_FOLDER"), *at = getenv("FAULT_AT"), *stays = getenv("FAULT_STAYS");
    if (!folder || !at || strncmp(path, folder, strlen(folder))) return 0;
    int now = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    return now == atoi(at) || (stays && *stays == '1' && now > atoi(at));
}

static int fails_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(path);
}

static int error(void) {
    const char *number = getenv("FAULT_ERRNO");
    return number ? atoi(number) : EIO;
}

ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (fails_fd(fd)) {
        if (!error()) return real(fd, data, size > 1 ? size / 2 : size);
        real(fd, data, size / 2);
        errno = error();
        return -1;
    }
    return real(fd, data, size);
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    if (error() && fails_fd(fd)) {
        errno = error();
        return -1;
    }
    return real(fd);
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    if (error() && fails(from)) {
        errno = error();
        return -1;
    }
    return real(from, to);
}
