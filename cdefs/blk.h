/* SPDX-License-Identifier: Apache-2.0 */
/* A virtio block device's requests (VIRTIO 1.2, 5.2.6), done on a file or block device. */
#ifndef PYVMM_BLK_H
#define PYVMM_BLK_H

#include <stdint.h>

#include "ring.h"

#define PYVMM_BLK_SERIAL_BYTES 20
#define PYVMM_BLK_MAX_RANGES 32          /* ranges in one discard or write-zeroes request */
#define PYVMM_BLK_MAX_SECTORS 0x400000   /* in each of them: 2 GiB */

/* What all queues of a disk share. */
struct pyvmm_disk {
	int fd;
	uint8_t read_only;
	uint8_t write_through;   /* the driver did not accept FLUSH: each write is to be durable */
	uint64_t sectors;        /* of 512 bytes */
	uint8_t serial[PYVMM_BLK_SERIAL_BYTES];
};

/* One queue and the thread that serves it. */
struct pyvmm_blk_queue {
	struct pyvmm_disk *disk;
	struct pyvmm_queue *queue;
	struct pyvmm_chain *chain;
	struct pyvmm_interrupt *interrupt;
	uint32_t bits;           /* what to raise */
	int doorbell;            /* eventfds */
	int stop;
	uint32_t stopping;
	uint64_t requests;       /* how many were done */
	uint64_t errors;         /* how many of them with VIRTIO_BLK_S_IOERR */
};

int pyvmm_blk_run(struct pyvmm_blk_queue *blk);
void pyvmm_blk_stop(struct pyvmm_blk_queue *blk);

#endif
