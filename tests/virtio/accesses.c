// SPDX-License-Identifier: Apache-2.0
/*
 * Log each access to some pages, in order, and spoil what was read: x86-64 only.
 *
 *   access --> SIGSEGV: log it, open the pages, single-step --> SIGTRAP: spoil, close the pages
 *
 * Memory that is spoiled after its first read shows whoever reads it again. One thread at a time
 * may access the pages, and the kernel may not.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define TRAP_FLAG 0x100 /* of EFLAGS */
#define WRITES 2        /* of the page fault's error code */
#define FLAGS_OFFSET 14 /* of a descriptor: a look at these alone is no fetch of it */

struct access {
	uint64_t offset;
	uint64_t writes;
};

static struct {
	uint8_t *start;
	size_t size;
	struct access *log;
	size_t room, count;
	size_t first, end;   /* offsets of what is spoiled */
	size_t descriptors;  /* before this offset 16 bytes at a time, behind it two */
	size_t cue, cues;    /* at the cues-th write there, `news` goes to `place` first: 0 is never */
	size_t place;
	uint16_t news;
	uint8_t *volatile stepping;
	volatile int active;
	int was_write;
	struct sigaction old_fault, old_trap;
} watch;

static void fault(int number, siginfo_t *info, void *context)
{
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
	uint8_t *at = info->si_addr;

	if (!watch.active && at >= watch.start && at < watch.start + watch.size)
		return; /* the pages were opened meanwhile: access them again */
	if (at < watch.start || at >= watch.start + watch.size || watch.stepping) {
		sigaction(number, &watch.old_fault, NULL); /* not ours: comes again at once */
		return;
	}
	watch.was_write = !!(registers[REG_ERR] & WRITES);
	if (watch.count < watch.room)
		watch.log[watch.count] = (struct access){ (uint64_t)(at - watch.start),
							  (uint64_t)watch.was_write };
	watch.count++;
	watch.stepping = at;
	mprotect(watch.start, watch.size, PROT_READ | PROT_WRITE);
	if (watch.was_write && watch.cues && at == watch.start + watch.cue && !--watch.cues)
		memcpy(watch.start + watch.place, &watch.news, sizeof(watch.news));
	registers[REG_EFL] |= TRAP_FLAG;
}

static void spoil(size_t offset)
{
	if (offset < watch.first || offset >= watch.end)
		return;
	if (offset >= watch.descriptors)
		memset(watch.start + (offset & ~(size_t)1), 0xff, 2);
	else if (offset % 16 != FLAGS_OFFSET)
		memset(watch.start + (offset & ~(size_t)15), 0xff, 16);
}

static void trap(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)info;
	((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
	if (!watch.stepping)
		return;
	if (!watch.was_write)
		spoil((size_t)(watch.stepping - watch.start));
	if (watch.active)
		mprotect(watch.start, watch.size, PROT_NONE);
	watch.stepping = NULL;
}

/* Start. `start` and `size` are whole pages; `log` has room for `room` accesses. */
void watch_pages(void *start, size_t size, struct access *log, size_t room, size_t first,
		 size_t descriptors, size_t end)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK };

	watch.start = start;
	watch.size = size;
	watch.log = log;
	watch.room = room;
	watch.count = 0;
	watch.descriptors = descriptors;
	watch.first = first;
	watch.end = end;
	watch.cues = 0;
	watch.stepping = NULL;
	action.sa_sigaction = fault;
	sigaction(SIGSEGV, &action, &watch.old_fault);
	action.sa_sigaction = trap;
	sigaction(SIGTRAP, &action, &watch.old_trap);
	watch.active = 1;
	mprotect(start, size, PROT_NONE);
}

/* Let the other side write 16 bits right before the `cues`-th write to `cue`. After watch_pages. */
void write_before(size_t cue, size_t cues, size_t place, uint16_t news)
{
	watch.cue = cue;
	watch.place = place;
	watch.news = news;
	watch.cues = cues;
}

/* End. Returns how many accesses there were. */
size_t unwatch_pages(void)
{
	watch.active = 0;
	while (watch.stepping)
		; /* another thread is about to have its SIGTRAP */
	mprotect(watch.start, watch.size, PROT_READ | PROT_WRITE);
	sigaction(SIGSEGV, &watch.old_fault, NULL);
	sigaction(SIGTRAP, &watch.old_trap, NULL);
	return watch.count;
}
