/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which chains of a split ring are with somebody else's process that serves it, so that they are
 * known if it dies: from what it read and wrote in guest memory no one could tell, as it uses
 * chains in any order and both rings are soon overwritten.
 *
 *     driver --doorbell--> here: look at both rings --kick--> the process
 *
 * A look per doorbell misses nothing: between two, no more entries can have come into either ring
 * than it holds, unless neither side waited for the other all the time. Then `exact` is 0 until
 * a look finds the ring idle.
 */
#ifndef PYVMM_INFLIGHT_H
#define PYVMM_INFLIGHT_H

#include <stdint.h>

struct pyvmm_inflight {
	uint16_t size;           /* of the ring, a power of two */
	uint8_t *driver;         /* the ring's areas (2.7), checked */
	uint8_t *device;
	uint64_t *since;         /* by head: when it was made available last, in entries */
	uint8_t *count;          /* by head: 1 if it is with the process */
	uint16_t avail;          /* how far both rings were looked at */
	uint16_t used;
	uint64_t seen;           /* entries of the available ring */
	uint8_t exact;
	int doorbell;            /* eventfds */
	int kick;
	int stop;
};

void pyvmm_inflight_run(struct pyvmm_inflight *inflight);
void pyvmm_inflight_look(struct pyvmm_inflight *inflight);
int32_t pyvmm_inflight_requeue(struct pyvmm_inflight *inflight, uint16_t *heads);

#endif
