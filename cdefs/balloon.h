/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PYVMM_BALLOON_H
#define PYVMM_BALLOON_H

#include <stdint.h>
#include "ring.h"

#define PYVMM_BALLOON_MOST_PFNS 16384

/* RAM that may go back: `given` has a bit for each page of 4 KiB that the guest gave. */
struct pyvmm_balloon_range {
	uint64_t base;   /* multiples of the host's page, all three */
	uint64_t size;
	uint8_t *host;
	int advice;      /* for madvise(2); depends on the mapping */
	uint64_t *given;
};

/* One thread at a time. */
struct pyvmm_balloon {
	uint32_t count;
	struct pyvmm_balloon_range *ranges; /* by ascending base */
	uint64_t page;      /* bytes of the host's page */
	int keep;           /* give nothing back: a device may access it by DMA */
	uint64_t given;     /* pages of 4 KiB */
	uint64_t foreign;   /* named pages that are not RAM */
	uint64_t returned;  /* bytes given back to the host, ever */
	int error;          /* errno of the first madvise(2) that failed */
	struct pyvmm_dirty *dirty; /* told what reads as zeroes now, or NULL */
};

void pyvmm_balloon_inflate(struct pyvmm_balloon *balloon, const struct pyvmm_chain *chain);
void pyvmm_balloon_deflate(struct pyvmm_balloon *balloon, const struct pyvmm_chain *chain);
void pyvmm_balloon_report(struct pyvmm_balloon *balloon, const struct pyvmm_chain *chain);
void pyvmm_balloon_forget(struct pyvmm_balloon *balloon);

#endif
