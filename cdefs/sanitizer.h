/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PYVMM_SANITIZER_H
#define PYVMM_SANITIZER_H

#include <stddef.h>

extern int pyvmm_sanitized; /* how many ranges have two copies; 0: the sanitizer is off */

int pyvmm_sanitize(const void *cache, void *memory, void *synced, size_t size);
void pyvmm_unsanitize(const void *cache);
int pyvmm_sanitizer_maintain(const void *from, size_t size, int invalidate);

#endif
