/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Track which chains of a split ring another process has, so that they are known if it dies. Guest
 * memory alone does not tell: the process uses chains in any order, and both rings are soon
 * overwritten.
 *
 *     driver --doorbell--> here: look at both rings --kick--> the process
 *
 * A look for each doorbell misses nothing: between two looks neither ring gets more entries than
 * it holds, unless neither side ever waits for the other. Then `exact` is 0 until a look finds
 * the ring idle.
 */
#ifndef PYVMM_INFLIGHT_H
#define PYVMM_INFLIGHT_H

#include <stdint.h>

struct pyvmm_inflight {
	uint16_t size;           /* of the ring, a power of two */
	uint8_t *driver;         /* the ring's areas (2.7), checked */
	uint8_t *device;
	uint64_t *since;         /* by head: the entry in which it was last made available */
	uint8_t *count;          /* by head: 1 if the process has it */
	uint16_t avail;          /* up to where each ring was looked at */
	uint16_t used;
	uint64_t seen;           /* entries of the available ring, ever */
	uint8_t exact;
	int doorbell;            /* eventfds */
	int kick;
	int stop;
};

void pyvmm_inflight_run(struct pyvmm_inflight *inflight);
void pyvmm_inflight_look(struct pyvmm_inflight *inflight);
int32_t pyvmm_inflight_requeue(struct pyvmm_inflight *inflight, uint16_t *heads);

#endif
