/* SPDX-License-Identifier: Apache-2.0 */
/* What a process gives up for good. */
#ifndef PYVMM_SEAL_H
#define PYVMM_SEAL_H

int pyvmm_seal(void);
int pyvmm_seal_child(void);

#endif
