// SPDX-License-Identifier: Apache-2.0
/*
 * The coherency sanitizer: a cache that is seen to be stale, on any machine.
 *
 * A range has three copies. Software that goes by caches reads and writes the first, a guest whose
 * caches are off the second, and nothing but cache maintenance moves lines between them:
 *
 *     cache    what the caches of this process's CPUs hold
 *     memory   what DRAM holds
 *     synced   what cache held when the line was last the same in both
 *
 *     clean              the line goes to memory, over what the guest has written there
 *     ... and invalidate  the line goes to memory if it is dirty, and is then filled from there
 *
 * A line that is only cleaned counts as dirty, since software cleans what it has stored. A line that
 * is invalidated as well counts as dirty if it differs from synced. So one thing is not seen: a store
 * of the very bytes that were there, which nobody cleans before the line is invalidated.
 *
 * A real cache may also write back and fill lines by itself, at any time. This one never does, so
 * what is forgotten shows, but for that. Not for several threads that maintain the same lines.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include "sanitizer.h"

#define RANGES 8
#define LINE 64 /* bytes; the smallest of Arm's data cache lines in use */

static struct {
	unsigned char *cache, *memory, *synced;
	size_t size;
} ranges[RANGES];

int pyvmm_sanitized;

/* Begin with all three the same: what cache holds. Returns 0 or -ENOSPC. */
int pyvmm_sanitize(const void *cache, void *memory, void *synced, size_t size)
{
	if (pyvmm_sanitized == RANGES)
		return -ENOSPC;
	memcpy(memory, cache, size);
	memcpy(synced, cache, size);
	ranges[pyvmm_sanitized].cache = (unsigned char *)cache;
	ranges[pyvmm_sanitized].memory = memory;
	ranges[pyvmm_sanitized].synced = synced;
	ranges[pyvmm_sanitized++].size = size;
	return 0;
}

void pyvmm_unsanitize(const void *cache)
{
	for (int i = 0; i < pyvmm_sanitized; i++) {
		if (ranges[i].cache != cache)
			continue;
		ranges[i] = ranges[--pyvmm_sanitized];
		return;
	}
}

static void maintain(int which, size_t at, int invalidate)
{
	unsigned char *cache = ranges[which].cache + at, *memory = ranges[which].memory + at;
	unsigned char *synced = ranges[which].synced + at;
	size_t left = ranges[which].size - at, size = left < LINE ? left : LINE;

	/* Who cleans a line has stored to it, be it the bytes that were there before. */
	if (!invalidate || memcmp(cache, synced, size)) {
		memcpy(memory, cache, size);
		memcpy(synced, cache, size);
	}
	if (invalidate) {
		memcpy(cache, memory, size);
		memcpy(synced, memory, size);
	}
}

/* Maintain the lines of [from, from + size). Returns whether the range is a sanitized one. */
int pyvmm_sanitizer_maintain(const void *from, size_t size, int invalidate)
{
	for (int i = 0; i < pyvmm_sanitized; i++) {
		size_t at = (size_t)((uintptr_t)from - (uintptr_t)ranges[i].cache);
		size_t end = at + size;

		if ((uintptr_t)from < (uintptr_t)ranges[i].cache || at >= ranges[i].size)
			continue;
		if (end > ranges[i].size)
			end = ranges[i].size;
		for (at -= at % LINE; at < end; at += LINE)
			maintain(i, at, invalidate);
		return 1;
	}
	return 0;
}
