/* A library to preload: the n-th call of one of the system's functions fails, from when `fail` is called.
   A call is refused, or done and its answer lost, as a disk or its cable may have it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

static struct { const char *name; long n; int error, lost, for_ever; } plan;

/* Fail the `n`-th call of `name` with `error`; `lost`: after it was done; `for_ever`: all that follow too. n = 0: none. */
void fail(const char *name, long n, int error, int lost, int for_ever) {
    plan.n = 0; plan.name = name; plan.error = error; plan.lost = lost; plan.for_ever = for_ever; plan.n = n;
}
/* How many calls are left until it fails; 0: it has failed */
long left(void) { return plan.n > 0 ? plan.n : 0; }

static int due(const char *name) {
    if (plan.n == 0 || strcmp(name, plan.name)) return 0;
    if (plan.n < 0) return 1;
    if (--plan.n) return 0;
    if (plan.for_ever) plan.n = -1;
    return 1;
}

#define REAL(f) ({ static __typeof__(f) *real; if (!real) real = (__typeof__(f) *)dlsym(RTLD_NEXT, #f); real; })
#define FAILING(type, f, kind, declared, ...)                                                        \
    type f declared {                                                                                \
        if (!due(kind)) return REAL(f)(__VA_ARGS__);                                                 \
        if (plan.lost) REAL(f)(__VA_ARGS__);                                                         \
        errno = plan.error;                                                                          \
        return (type)-1;                                                                             \
    }

FAILING(ssize_t, write, "write", (int fd, const void *data, size_t size), fd, data, size)
FAILING(ssize_t, pwrite, "pwrite", (int fd, const void *data, size_t size, off_t at), fd, data, size, at)
FAILING(ssize_t, pwrite64, "pwrite", (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)
struct iovec;
FAILING(ssize_t, pwritev, "pwrite", (int fd, const struct iovec *parts, int n, off_t at), fd, parts, n, at)
FAILING(ssize_t, pwritev64, "pwrite", (int fd, const struct iovec *parts, int n, off64_t at), fd, parts, n, at)
FAILING(ssize_t, writev, "write", (int fd, const struct iovec *parts, int n), fd, parts, n)
FAILING(int, fsync, "fsync", (int fd), fd)
FAILING(int, fdatasync, "fdatasync", (int fd), fd)
FAILING(int, link, "link", (const char *from, const char *to), from, to)
FAILING(int, linkat, "link", (int a, const char *from, int b, const char *to, int flags), a, from, b, to, flags)
FAILING(int, unlink, "unlink", (const char *path), path)
FAILING(int, unlinkat, "unlink", (int at, const char *path, int flags), at, path, flags)
FAILING(int, rename, "rename", (const char *from, const char *to), from, to)
FAILING(int, renameat, "rename", (int a, const char *from, int b, const char *to), a, from, b, to)
FAILING(int, flock, "flock", (int fd, int how), fd, how)
FAILING(int, mkdir, "mkdir", (const char *path, mode_t mode), path, mode)
FAILING(int, ftruncate, "ftruncate", (int fd, off_t size), fd, size)
FAILING(int, ftruncate64, "ftruncate", (int fd, off64_t size), fd, size)
FAILING(void *, mmap, "mmap", (void *at, size_t size, int prot, int flags, int fd, off_t offset), at, size, prot, flags, fd, offset)
FAILING(void *, mmap64, "mmap", (void *at, size_t size, int prot, int flags, int fd, off64_t offset), at, size, prot, flags, fd, offset)

#define OPENING(f, declared, ...)                                                                    \
    int f declared {                                                                                 \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more);       \
        if (!due("open")) return REAL(f)(__VA_ARGS__);                                               \
        errno = plan.error;                                                                          \
        return -1;                                                                                   \
    }
OPENING(open, (const char *path, int flags, ...), path, flags, mode)
OPENING(open64, (const char *path, int flags, ...), path, flags, mode)
OPENING(openat, (int at, const char *path, int flags, ...), at, path, flags, mode)
OPENING(openat64, (int at, const char *path, int flags, ...), at, path, flags, mode)

int posix_fallocate(int fd, off_t at, off_t size) { return due("ftruncate") ? plan.error : REAL(posix_fallocate)(fd, at, size); }
int posix_fallocate64(int fd, off64_t at, off64_t size) { return due("ftruncate") ? plan.error : REAL(posix_fallocate64)(fd, at, size); }
