// SPDX-License-Identifier: Apache-2.0
/*
 * Survive SIGBUS in mappings of files that others can make shorter.
 *
 * An access beyond a file's end, or to a page for which its file system has no room or no data,
 * is a SIGBUS for the thread that makes it. In the ranges that are watched, a page of zeroes takes
 * the place of the lost one and the access is done again; the first loss in each range is kept,
 * and an eventfd signalled. Everywhere else a SIGBUS does what it did before.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define RANGES 64

static struct {
	uintptr_t start, end; /* end: 0 if the entry is free */
	uint64_t lost;        /* 1 + the offset of the first page lost; 0: none is */
} ranges[RANGES];

static struct sigaction before;
static uintptr_t page;
static int teller = -1;

static int watched(uintptr_t at)
{
	for (int i = 0; i < RANGES; i++)
		if (at < __atomic_load_n(&ranges[i].end, __ATOMIC_ACQUIRE) && at >= ranges[i].start)
			return i;
	return -1;
}

static void replace(int number, siginfo_t *info, void *context)
{
	uintptr_t at = (uintptr_t)info->si_addr & -page;
	/* Not for BUS_ADRALN: an unaligned access to Device memory meets a page that is there. */
	int gone = info->si_code == BUS_ADRERR || info->si_code == BUS_OBJERR ||
		   info->si_code == BUS_MCEERR_AR;
	int kept = errno, index = gone ? watched(at) : -1;
	uint64_t none = 0;

	(void)context;
	if (index < 0 || mmap((void *)at, page, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) {
		/* The access is done again, and meets what was there before us. */
		sigaction(number, &before, NULL);
		if (info->si_code <= 0)
			raise(number);
	} else {
		__atomic_compare_exchange_n(&ranges[index].lost, &none, at - ranges[index].start + 1,
					    0, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
		eventfd_write(__atomic_load_n(&teller, __ATOMIC_RELAXED), 1);
	}
	errno = kept;
}

/* Install the handler, unless it is there: somebody may have put another in its place meanwhile. */
static int install(void)
{
	struct sigaction action = { .sa_sigaction = replace, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	struct sigaction now;

	page = (uintptr_t)sysconf(_SC_PAGESIZE);
	if (sigaction(SIGBUS, NULL, &now))
		return -errno;
	if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == replace)
		return 0;
	return sigaction(SIGBUS, &action, &before) ? -errno : 0;
}

/*
 * Watch size bytes at address, which is a multiple of the page size. Returns the entry, or -errno:
 * ENOSPC if all are taken. One thread at a time adds and removes entries.
 */
int pyvmm_sigbus_watch(uintptr_t address, uint64_t size)
{
	int error = install();

	if (error)
		return error;
	for (int i = 0; i < RANGES; i++) {
		if (ranges[i].end)
			continue;
		ranges[i].start = address;
		ranges[i].lost = 0;
		__atomic_store_n(&ranges[i].end, address + size, __ATOMIC_RELEASE);
		return i;
	}
	return -ENOSPC;
}

void pyvmm_sigbus_forget(int entry)
{
	__atomic_store_n(&ranges[entry].end, 0, __ATOMIC_RELEASE);
}

/* Return the offset of the first page that the range has lost, or -1. */
int64_t pyvmm_sigbus_lost(int entry)
{
	return (int64_t)__atomic_load_n(&ranges[entry].lost, __ATOMIC_ACQUIRE) - 1;
}

/* Signal this eventfd at each loss; -1: none. */
void pyvmm_sigbus_tell(int eventfd)
{
	__atomic_store_n(&teller, eventfd, __ATOMIC_RELAXED);
}
