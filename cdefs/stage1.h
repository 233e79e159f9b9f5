/* SPDX-License-Identifier: Apache-2.0 */
/* What loads through our own mappings meet. */
#ifndef PYVMM_STAGE1_H
#define PYVMM_STAGE1_H

#include <stdint.h>

struct pyvmm_fault {
	int number; /* of the signal; 0: none */
	int code;   /* si_code */
};

struct pyvmm_walks {
	uint64_t cold; /* ticks, just after the lines were cleaned and invalidated */
	uint64_t warm; /* ticks, just after they were loaded */
};

int pyvmm_stage1_load(uintptr_t address, struct pyvmm_fault *fault);
int pyvmm_stage1_walk(uintptr_t address, struct pyvmm_walks *walks, struct pyvmm_fault *fault);

#endif
