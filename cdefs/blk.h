/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Do a virtio block device's requests (VIRTIO 1.2, 5.2.6) on a file or block device.
 *
 *     blk.c        one request: decode it, and do it synchronously
 *     blk_queue.c  a queue's thread: many requests at a time, by io_uring if the host has it
 */
#ifndef PYVMM_BLK_H
#define PYVMM_BLK_H

#include <stdint.h>

#include "ring.h"
#include "uring.h"

#define PYVMM_BLK_SERIAL_BYTES 20
#define PYVMM_BLK_DISCARD_RANGES 32      /* in one request */
#define PYVMM_BLK_DISCARD_SECTORS 0x400000 /* in each of them: 2 GiB */
#define PYVMM_BLK_ZEROES_RANGES 1        /* in one request; they may have to be written as data */
#define PYVMM_BLK_ZEROES_SECTORS 0x20000 /* 64 MiB */
#define PYVMM_BLK_MAGIC_BYTES 16
#define PYVMM_BLK_DEPTH 128              /* requests of a queue in flight at once */

/* How an image of some format begins. */
struct pyvmm_blk_magic {
	uint32_t length;
	uint8_t bytes[PYVMM_BLK_MAGIC_BYTES];
};

/* Shared by all queues of a disk. */
struct pyvmm_disk {
	int fd;
	int direct_fd;           /* the same file without the host's page cache; or -1 */
	uint32_t direct_memory;  /* alignment that direct_fd needs in memory */
	uint32_t direct_offset;  /* and in the file */
	uint8_t read_only;
	uint8_t write_through;   /* complete a write when it is durable */
	uint8_t no_flush;        /* flushes do nothing */
	uint8_t one_by_one;      /* do not use io_uring */
	uint64_t sectors;        /* of 512 bytes */
	uint8_t serial[PYVMM_BLK_SERIAL_BYTES];
	uint32_t magic_count;
	const struct pyvmm_blk_magic *magics; /* what the driver may not make the disk begin with */
};

enum pyvmm_blk_operation {
	PYVMM_BLK_NOTHING,       /* it is done */
	PYVMM_BLK_READ,
	PYVMM_BLK_WRITE,
	PYVMM_BLK_SYNC,
};

/* A popped request, and what is left to do of it. */
struct pyvmm_blk_request {
	struct pyvmm_chain chain;
	uint8_t operation;
	uint32_t type;           /* VIRTIO_BLK_T_* */
	int error;               /* the host's errno, if the host failed and not the driver */
	uint8_t refused;         /* it would have made the disk look like another format */
	uint8_t result;          /* VIRTIO_BLK_S_*, for the driver */
	uint8_t *status;         /* where to write it */
	uint32_t written;        /* bytes of the chain that count as written */
	struct iovec *iov;
	uint32_t count;
	uint64_t bytes;
	int64_t offset;
};

void pyvmm_blk_begin(const struct pyvmm_disk *disk, struct pyvmm_blk_request *request,
		     const uint32_t *stopping);
int pyvmm_blk_is_direct(const struct pyvmm_disk *disk, const struct pyvmm_blk_request *request);
int pyvmm_blk_advance(struct pyvmm_blk_request *request, int64_t done);
void pyvmm_blk_finish(const struct pyvmm_disk *disk, struct pyvmm_blk_request *request,
		      const uint32_t *stopping);
int pyvmm_blk_is_long(const struct pyvmm_blk_request *request);
void pyvmm_blk_fail(struct pyvmm_blk_request *request);
int pyvmm_blk_alignment(int fd, uint32_t *memory, uint32_t *offset);

/* A failure of the host, or a refusal of ours. */
struct pyvmm_blk_failure {
	uint32_t pending;        /* 1: not taken yet; 2: being taken */
	uint32_t type;           /* VIRTIO_BLK_T_* */
	uint8_t refused;         /* by pyvmm, and not by the host */
	int error;               /* an errno */
	int64_t offset;          /* in the file */
};

/* How a queue's thread ends: with its requests done, or with long ones cut short. */
enum pyvmm_blk_end { PYVMM_BLK_GOES_ON, PYVMM_BLK_PAUSE, PYVMM_BLK_STOP };

/* One queue and the thread that serves it. */
struct pyvmm_blk_queue {
	struct pyvmm_disk *disk;
	struct pyvmm_uring *uring; /* NULL: the host has none, or does not allow it */
	struct pyvmm_queue *queue;
	struct pyvmm_blk_request *slots; /* PYVMM_BLK_DEPTH, each with a chain */
	struct pyvmm_interrupt *interrupt;
	uint32_t bits;           /* of the interrupt to raise */
	int doorbell;            /* eventfds */
	int stop;
	int trouble;             /* signals a failure */
	uint32_t stopping;       /* enum pyvmm_blk_end */
	uint64_t requests;       /* done */
	uint64_t errors;         /* done with VIRTIO_BLK_S_IOERR */
	uint8_t uses_uring;      /* `uring` was used, and not done without */
	struct pyvmm_blk_failure failure;
};

int pyvmm_blk_open_uring(struct pyvmm_uring *uring);
int pyvmm_blk_run(struct pyvmm_blk_queue *blk);
void pyvmm_blk_stop(struct pyvmm_blk_queue *blk, uint32_t how);
int pyvmm_blk_take_failure(struct pyvmm_blk_queue *blk, struct pyvmm_blk_failure *failure);

#endif
