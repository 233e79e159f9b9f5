// SPDX-License-Identifier: Apache-2.0
/*
 * Bulk work on guest memory: copies, scans for zero and dirty pages, cache maintenance.
 *
 * Everything here runs without Python's lock, which cffi releases around each call: a scan of a
 * guest's memory must not block its vCPUs.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "sanitizer.h"

void pyvmm_copy(void *to, const void *from, size_t size)
{
	memcpy(to, from, size);
}

/* --- Zeroes ---------------------------------------------------------------------------------- */

/* Return the number of zero bytes at the start: size, if all are zero. */
uint64_t pyvmm_zero_prefix(const void *from, size_t size)
{
	const unsigned char *bytes = from;
	size_t at = 0;

	while (at + 64 <= size) {
		uint64_t words[8], any = 0;

		memcpy(words, bytes + at, sizeof(words));
		for (int i = 0; i < 8; i++)
			any |= words[i];
		if (any)
			break;
		at += 64;
	}
	while (at < size && !bytes[at])
		at++;
	return at;
}

/* Set the bit of each page that is not all zeroes. Returns their number. */
uint64_t pyvmm_nonzero_pages(const void *from, uint64_t pages, size_t page, uint64_t *bitmap)
{
	const unsigned char *bytes = from;
	uint64_t count = 0;

	memset(bitmap, 0, (pages + 63) / 64 * 8);
	for (uint64_t i = 0; i < pages; i++) {
		if (pyvmm_zero_prefix(bytes + i * page, page) == page)
			continue;
		bitmap[i / 64] |= UINT64_C(1) << (i % 64);
		count++;
	}
	return count;
}

/* --- Bitmaps, as KVM_GET_DIRTY_LOG fills them: bit n of word w is page 64 * w + n ------------- */

/* Return word i of the bitmap, with the bits past its end cleared. */
static uint64_t word(const uint64_t *bitmap, uint64_t bits, uint64_t i)
{
	uint64_t left = bits - i * 64;

	return left >= 64 ? bitmap[i] : bitmap[i] & ((UINT64_C(1) << left) - 1);
}

uint64_t pyvmm_bitmap_count(const uint64_t *bitmap, uint64_t bits)
{
	uint64_t count = 0;

	for (uint64_t i = 0; i * 64 < bits; i++)
		count += (uint64_t)__builtin_popcountll(word(bitmap, bits, i));
	return count;
}

/* Return the first set (or, inverted, clear) bit from `at` on, or bits if there is none. */
static uint64_t next(const uint64_t *bitmap, uint64_t bits, uint64_t at, uint64_t invert)
{
	while (at < bits) {
		uint64_t rest = ((bitmap[at / 64]) ^ invert) >> (at % 64);

		if (rest) {
			at += (uint64_t)__builtin_ctzll(rest);
			return at < bits ? at : bits;
		}
		at = (at / 64 + 1) * 64;
	}
	return bits;
}

/*
 * Write up to max pairs (first bit, number of bits), one for each run of set bits from bit *from
 * on. Returns the number of pairs, and sets *from to where the next call continues (bits, at the
 * end).
 */
uint64_t pyvmm_bitmap_runs(const uint64_t *bitmap, uint64_t bits, uint64_t *from,
			   uint64_t *runs, uint64_t max)
{
	uint64_t count = 0;

	while (count < max) {
		uint64_t start = next(bitmap, bits, *from, 0);
		uint64_t end = next(bitmap, bits, start, ~UINT64_C(0));

		*from = end;
		if (start == bits)
			break;
		runs[2 * count] = start;
		runs[2 * count + 1] = end - start;
		count++;
	}
	return count;
}

/* --- Cache maintenance to the Point of Coherency --------------------------------------------- */

#ifdef __aarch64__

/* Linux lets EL0 read it (SCTLR_EL1.UCT), or emulates the read if cores differ. */
uint64_t pyvmm_ctr_el0(void)
{
	uint64_t ctr;

	__asm__ volatile("mrs %0, ctr_el0" : "=r"(ctr));
	return ctr;
}

/* Hz of the counter that guests read as well; Linux lets EL0 read it. */
uint64_t pyvmm_cntfrq_el0(void)
{
	uint64_t frequency;

	__asm__ volatile("mrs %0, cntfrq_el0" : "=r"(frequency));
	return frequency;
}

/* The smallest data cache line of any core, in bytes: CTR_EL0.DminLine is log2 of its words. */
static uintptr_t line_size(void)
{
	return (uintptr_t)4 << ((pyvmm_ctr_el0() >> 16) & 15);
}

#define FOR_EACH_LINE(instruction, from, size)						\
	do {										\
		uintptr_t line = line_size(), end = (uintptr_t)(from) + (size);		\
		uintptr_t at = (uintptr_t)(from) & ~(line - 1);				\
											\
		for (; at < end; at += line)						\
			__asm__ volatile(instruction ", %0" : : "r"(at) : "memory");	\
		__asm__ volatile("dsb sy" : : : "memory");				\
	} while (0)

#define HAS_CACHE_MAINTENANCE

#else

/* Other architectures have no such registers, and memory is coherent for all observers. */
uint64_t pyvmm_ctr_el0(void)
{
	return 0;
}

uint64_t pyvmm_cntfrq_el0(void)
{
	return 0;
}

#endif

/* Clean: data written here reaches memory, for a guest that bypasses the caches. */
void pyvmm_dc_cvac(const void *from, size_t size)
{
	if (pyvmm_sanitized && pyvmm_sanitizer_maintain(from, size, 0))
		return;
#ifdef HAS_CACHE_MAINTENANCE
	FOR_EACH_LINE("dc cvac", from, size);
#endif
}

/* Clean and invalidate: later reads here see what a guest wrote bypassing the caches. */
void pyvmm_dc_civac(const void *from, size_t size)
{
	if (pyvmm_sanitized && pyvmm_sanitizer_maintain(from, size, 1))
		return;
#ifdef HAS_CACHE_MAINTENANCE
	FOR_EACH_LINE("dc civac", from, size);
#endif
}

/*
 * Code was written here: make the instruction fetches of all CPUs see it. To the point of
 * unification, as user space may (SCTLR_EL1.UCI); for a guest whose caches are off, clean to memory
 * as well. An aliasing (VIPT) instruction cache may keep what a guest fetched by another address.
 */
void pyvmm_sync_code(void *from, size_t size)
{
	__builtin___clear_cache((char *)from, (char *)from + size);
}
