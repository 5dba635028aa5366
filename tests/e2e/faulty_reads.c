/* Loaded before a program (LD_PRELOAD), lets its reads fail as a bad drive's do. HYPURA_TEST_FAULTS names a file with what to do now:
 *
 *   SEED KIND SHARE
 *
 * KIND is eio, short or stall, SHARE how many of a hundred reads meet it. An empty file, or none: reads are as they are. Only preadv is
 * caught, so libhypura must read with threads (HYPURA_IO=threads). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

typedef ssize_t (*preadv_function)(int, const struct iovec *, int, off_t);

static unsigned long long mixed(unsigned long long number) {
    number ^= number >> 33;
    number *= 0xff51afd7ed558ccdULL;
    number ^= number >> 33;
    number *= 0xc4ceb9fe1a85ec53ULL;
    return number ^ number >> 33;
}

/* What the control file says of this read; an empty kind when it is to be left alone. */
static void decide(char kind[16]) {
    static atomic_ullong reads;
    unsigned long long seed = 0;
    unsigned share = 0;
    kind[0] = 0;
    const char *path = getenv("HYPURA_TEST_FAULTS");
    FILE *file = path ? fopen(path, "re") : NULL;
    if (!file) {
        return;
    }
    const int found = fscanf(file, "%llu %15s %u", &seed, kind, &share);
    fclose(file);
    if (found != 3 || mixed(seed + atomic_fetch_add(&reads, 1)) % 100 >= share) {
        kind[0] = 0;
    }
}

static ssize_t faulty(int descriptor, const struct iovec *vectors, int count, off_t offset, preadv_function real) {
    char kind[16];
    decide(kind);
    if (strcmp(kind, "eio") == 0) {
        errno = EIO;
        return -1;
    }
    if (strcmp(kind, "stall") == 0) {
        usleep(300 * 1000);
    }
    if (strcmp(kind, "short") == 0 && vectors[0].iov_len >= 8192) {
        const struct iovec half = {vectors[0].iov_base, vectors[0].iov_len / 2 / 4096 * 4096};
        return real(descriptor, &half, 1, offset);
    }
    return real(descriptor, vectors, count, offset);
}

ssize_t preadv(int descriptor, const struct iovec *vectors, int count, off_t offset) {
    return faulty(descriptor, vectors, count, offset, (preadv_function)dlsym(RTLD_NEXT, "preadv"));
}

ssize_t preadv64(int descriptor, const struct iovec *vectors, int count, off_t offset) {
    return faulty(descriptor, vectors, count, offset, (preadv_function)dlsym(RTLD_NEXT, "preadv64"));
}
