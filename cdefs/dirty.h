/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages of RAM that this process writes for the guest. KVM's dirty log has only the stores of the
 * guest and of KVM itself.
 *
 * A page is marked after it was written, and taken before it is read: whoever takes a mark sees what
 * was written before it.
 */
#ifndef PYVMM_DIRTY_H
#define PYVMM_DIRTY_H

#include <stddef.h>
#include <stdint.h>

struct pyvmm_dirty {
	uint8_t *host;    /* RAM in this process, */
	uint64_t size;    /* its bytes, */
	uint32_t shift;   /* and log2 of the bytes of a page */
	uint64_t *bitmap; /* NULL: nobody asks. Changes while nothing is written only */
};

/* Mark [at, at + length), if that is RAM. Always an atomic store, which no earlier one passes. */
static inline void pyvmm_dirty_mark(struct pyvmm_dirty *dirty, const void *at, uint64_t length)
{
	uint64_t start, end;

	if (!dirty || !dirty->bitmap || !length)
		return;
	start = (uint64_t)((const uint8_t *)at - dirty->host); /* wraps for what lies before */
	if (start >= dirty->size)
		return;
	end = dirty->size - start < length ? dirty->size : start + length;
	for (uint64_t page = start >> dirty->shift; page <= (end - 1) >> dirty->shift; page++)
		__atomic_fetch_or(&dirty->bitmap[page / 64], UINT64_C(1) << page % 64,
				  __ATOMIC_RELEASE);
}

#endif
