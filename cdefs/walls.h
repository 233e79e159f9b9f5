/* SPDX-License-Identifier: Apache-2.0 */
/* Walls around a daemon; see walls.c. */
#ifndef PYVMM_WALLS_H
#define PYVMM_WALLS_H

#include <stdint.h>

enum pyvmm_place_kind {
	PYVMM_PLACE_DIRECTORY, /* a new directory */
	PYVMM_PLACE_LINK,      /* a symbolic link with the text *source* */
	PYVMM_PLACE_TREE,      /* a directory of the host with what is mounted below, read-only */
	PYVMM_PLACE_FILE,      /* a file of the host, read-only */
	PYVMM_PLACE_WRITABLE,  /* a file of the host */
};

/* Something in the root directory of a daemon. */
struct pyvmm_place {
	const char *source;
	const char *target; /* without the first slash */
	uint32_t kind;      /* enum pyvmm_place_kind */
	int pinned;         /* FILE and WRITABLE: the descriptor of what *source* has to be; or -1 */
	int mount;          /* for walls.c's own use */
};

struct pyvmm_walls {
	uint32_t count;
	struct pyvmm_place *places;
	uint32_t root;        /* root starts it, which needs no user namespace */
	uint32_t user, group; /* of who starts it */
};

int pyvmm_raise_walls(const struct pyvmm_walls *walls);
int pyvmm_lock_walls(void);

#endif
