/* Preloaded into the processes of a test: the clocks that they see are the machine's, moved by what a file says. The file holds three numbers
   of 64 bits, nanoseconds: by how much the clock on the wall, that which rests while the machine sleeps, and that which does not, are ahead. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *ahead;
static const char *path;

__attribute__((constructor)) static void begin(void) {
    path = getenv("TEST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *map = mmap(0, 24, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED) ahead = map;
}

static int64_t moved(clockid_t clock) {
    if (!ahead) return 0;
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) return ahead[0];
    if (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE) return ahead[1];
    return clock == CLOCK_BOOTTIME ? ahead[2] : 0;
}

int clock_gettime(clockid_t clock, struct timespec *t) {
    if (syscall(SYS_clock_gettime, clock, t)) return -1;
    int64_t ns = t->tv_nsec + moved(clock);
    int64_t seconds = ns / 1000000000, rest = ns % 1000000000;
    if (rest < 0) { rest += 1000000000; seconds -= 1; }
    t->tv_sec += seconds;
    t->tv_nsec = rest;
    return 0;
}

int gettimeofday(struct timeval *t, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}

/* Moments to wait until: the system's clocks are where they are. */
static struct timespec there(clockid_t clock, const struct timespec *t) {
    int64_t ns = t->tv_sec*1000000000 + t->tv_nsec - moved(clock);
    if (ns < 0) ns = 0;
    return (struct timespec){ns / 1000000000, ns % 1000000000};
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *t, struct timespec *left) {
    struct timespec until = flags & TIMER_ABSTIME ? there(clock, t) : *t;
    static int (*real)(clockid_t, int, const struct timespec *, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_nanosleep");
    return real(clock, flags, &until, left);
}

int sem_clockwait(sem_t *sem, clockid_t clock, const struct timespec *t) {
    struct timespec until = there(clock, t);
    static int (*real)(sem_t *, clockid_t, const struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "sem_clockwait");
    return real(sem, clock, &until);
}

int sem_timedwait(sem_t *sem, const struct timespec *t) {
    struct timespec until = there(CLOCK_REALTIME, t);
    static int (*real)(sem_t *, const struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "sem_timedwait");
    return real(sem, &until);
}

/* A timer that tells when the clock on the wall is set: becomes readable when the file is written to. No other timers are made here. */
int timerfd_create(int clock, int flags) {
    int fd = inotify_init1(flags & (IN_NONBLOCK | IN_CLOEXEC));
    if (fd >= 0 && path) inotify_add_watch(fd, path, IN_MODIFY);
    return fd;
}

int timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old) { return 0; }
