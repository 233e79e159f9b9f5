/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An io_uring (io_uring(7)): many operations on files by one system call, completed in any order.
 * One thread at a time may use it. It does what a disk's queue needs and nothing else.
 */
#ifndef PYVMM_URING_H
#define PYVMM_URING_H

#include <linux/io_uring.h>
#include <stddef.h>
#include <stdint.h>

struct pyvmm_uring {
	int fd;
	uint32_t queued;         /* entries that are not submitted yet */
	uint32_t sq_mask;
	uint32_t cq_mask;
	uint32_t *sq_head;
	uint32_t *sq_tail;
	uint32_t *cq_head;
	uint32_t *cq_tail;
	struct io_uring_sqe *entries;
	struct io_uring_cqe *completions;
	void *rings;             /* mappings */
	size_t rings_bytes;
	size_t entries_bytes;
};

int pyvmm_uring_open(struct pyvmm_uring *uring, uint32_t entries);
void pyvmm_uring_close(struct pyvmm_uring *uring);
struct io_uring_sqe *pyvmm_uring_entry(struct pyvmm_uring *uring);
int pyvmm_uring_enter(struct pyvmm_uring *uring, uint32_t wait_for);
int pyvmm_uring_next(struct pyvmm_uring *uring, struct io_uring_cqe *completion);

#endif
