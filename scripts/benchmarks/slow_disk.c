/* A slow shared disk: loaded before the C library, it delays each open below some folders, and counts all of them.

   LD_PRELOAD and LD_AUDIT name this library: the first sees what programs open, the second what the dynamic linker
   does. SLOW_DISK_BELOW holds the folders with colons in between, SLOW_DISK_US the delay in microseconds, and
   SLOW_DISK_COUNTS a file of two 8-byte counts: opens below the folders, and all opens. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static unsigned long *counts;

static unsigned long *mapped(void) {
    const char *path = getenv("SLOW_DISK_COUNTS");
    if (counts == NULL && path != NULL) {
        int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
        void *found = file < 0 ? MAP_FAILED : mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (file >= 0) close(file);
        if (found != MAP_FAILED) counts = found;
    }
    return counts;
}

static int is_below(const char *path) {
    const char *folder = getenv("SLOW_DISK_BELOW");
    while (folder != NULL && *folder != '\0') {
        size_t length = strcspn(folder, ":");
        if (strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == '\0')) return 1;
        folder += length + (folder[length] == ':');
    }
    return 0;
}

static void opening(const char *path) {
    unsigned long *both = mapped();
    if (path == NULL || both == NULL) return;
    __atomic_fetch_add(&both[1], 1, __ATOMIC_RELAXED);
    if (!is_below(path)) return;
    __atomic_fetch_add(&both[0], 1, __ATOMIC_RELAXED);
    const char *delay = getenv("SLOW_DISK_US");
    struct timespec pause = {0, 1000 * (delay == NULL ? 0 : atol(delay))};
    if (pause.tv_nsec > 0) nanosleep(&pause, NULL);
}

static int mode_of(int flags, va_list rest) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; }

#define OPEN(name)                                                      \
    int name(const char *path, int flags, ...) {                        \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        int mode = mode_of(flags, rest);                                \
        va_end(rest);                                                   \
        opening(path);                                                  \
        return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);   \
    }
#define OPENAT(name)                                                    \
    int name(int folder, const char *path, int flags, ...) {            \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        int mode = mode_of(flags, rest);                                \
        va_end(rest);                                                   \
        opening(path);                                                  \
        return (int)syscall(SYS_openat, folder, path, flags, mode);     \
    }
#define STREAM(name)                                                    \
    FILE *name(const char *path, const char *mode) {                    \
        FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, #name); \
        opening(path);                                                  \
        return real(path, mode);                                        \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
STREAM(fopen)
STREAM(fopen64)

DIR *opendir(const char *path) {
    DIR *(*real)(const char *) = dlsym(RTLD_NEXT, "opendir");
    opening(path);
    return real(path);
}

unsigned int la_version(unsigned int version) { return version; }

/* The linker asks for each path that it tries, in folder after folder, before it opens it. */
char *la_objsearch(const char *path, uintptr_t *cookie, unsigned int flag) {
    (void)cookie;
    if (flag != LA_SER_ORIG || strchr(path, '/') != NULL) opening(path);
    return (char *)path;
}
