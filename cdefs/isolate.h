/* SPDX-License-Identifier: Apache-2.0 */
/* Walls around a machine's process; see isolate.c. */
#ifndef PYVMM_ISOLATE_H
#define PYVMM_ISOLATE_H

#include <stdint.h>

#define PYVMM_WALL_USER 1 /* another user and no capability */
#define PYVMM_WALL_FILES 2 /* an empty root directory, in a mount namespace */
#define PYVMM_WALL_NETWORK 4 /* a network namespace without interfaces */
#define PYVMM_WALL_IPC 8 /* an IPC namespace */
#define PYVMM_WALL_LANDLOCK 16 /* Landlock: no file can be opened */
#define PYVMM_WALL_TCP 32 /* Landlock: no TCP port bound or connected to (ABI 4) */
#define PYVMM_WALL_SCOPE 64 /* Landlock: no signal, no abstract socket of others (ABI 6) */

#define PYVMM_FIRST_USER 0x70000000 /* see vmm/machine/isolate.py */

int pyvmm_isolate(uint32_t user);

/* For a daemon's walls (walls.c). System calls only. */
int pyvmm_map_user(uint32_t user, uint32_t group);
int pyvmm_enter_root(void);
int pyvmm_bound_capabilities(uint64_t kept);
int pyvmm_keep_capabilities(uint32_t kept);

#endif
