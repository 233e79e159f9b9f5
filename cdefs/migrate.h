/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages on a stream of live migration (vmm/state/README.md, "Memory that moves while its guest runs"), straight between guest
 * RAM and a socket.
 *
 *     frame   kind, count, size; then size bytes
 *     raw     count runs (offset and length of each), then the bytes of all of them
 *     zero    count runs, which are zeroes
 *     text    JSON, which Python reads
 *
 * Little-endian. Offsets and lengths are bytes of RAM, and multiples of the page.
 */
#ifndef PYVMM_MIGRATE_H
#define PYVMM_MIGRATE_H

#include <stdint.h>

#include "dirty.h"

#define PYVMM_FRAME_TEXT 1
#define PYVMM_FRAME_RAW 2
#define PYVMM_FRAME_ZERO 3
#define PYVMM_FRAME_RUNS 256 /* runs in a frame, at most */

/* What a sender can do wrong. Positive, unlike an errno. */
enum pyvmm_stream_error {
	PYVMM_STREAM_KIND = 2,   /* an unknown kind of frame */
	PYVMM_STREAM_COUNT = 3,  /* no runs, or too many */
	PYVMM_STREAM_SIZE = 4,   /* not the size of the runs */
	PYVMM_STREAM_OFFSET = 5, /* not a page of RAM */
	PYVMM_STREAM_LENGTH = 6, /* not whole pages, or beyond the end of RAM */
};

struct pyvmm_frame {
	uint32_t kind;
	uint32_t count;
	uint64_t size;
};

/* Totals, which grow. */
struct pyvmm_moved {
	uint64_t frames;
	uint64_t raw;  /* bytes of pages */
	uint64_t zero;
	uint64_t wire; /* bytes on the stream */
};

int pyvmm_send_pages(int fd, const uint8_t *ram, uint64_t size, uint32_t shift,
		     const uint64_t *bitmap, uint64_t from, uint64_t pages,
		     struct pyvmm_moved *moved);
int pyvmm_receive_pages(int fd, uint8_t *ram, uint64_t size, uint32_t shift,
			struct pyvmm_frame *next, struct pyvmm_moved *moved, uint64_t *written);
void pyvmm_dirty_note(struct pyvmm_dirty *dirty, const void *at, uint64_t length);
uint64_t pyvmm_dirty_take(struct pyvmm_dirty *dirty, uint64_t *into);
uint64_t pyvmm_bitmap_merge(uint64_t *to, const uint64_t *from, uint64_t bits);

#endif
