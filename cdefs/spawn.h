/* SPDX-License-Identifier: Apache-2.0 */
/* A program to start, and its descriptors. */
#ifndef PYVMM_SPAWN_H
#define PYVMM_SPAWN_H

#include <stdint.h>

#include "walls.h"

struct pyvmm_program {
	const char *path;        /* NULL: try the walls, and end */
	char *const *argv;       /* both end with NULL */
	char *const *envp;
	uint32_t fd_count;
	const int *fds;          /* become 0, 1, 2, ... in the program; it gets no others */
	int *moved;              /* room for as many */
	const struct pyvmm_walls *walls; /* NULL: none */
};

int pyvmm_spawn(const struct pyvmm_program *program);

#endif
