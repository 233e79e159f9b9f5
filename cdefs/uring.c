// SPDX-License-Identifier: Apache-2.0
/*
 * io_uring by its system calls: see uring.h.
 *
 *     entries ring  --enter--> kernel --completions ring-->
 *
 * The kernel reads the tail and writes the head of the first ring, and the reverse for the second.
 * The indices that it writes are loaded with acquire, ours are stored with release.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "uring.h"

/* Required features. CQE_SKIP marks Linux 5.17: every operation used here is older. */
#define NEEDED (IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_CQE_SKIP)

static int setup(uint32_t entries, struct io_uring_params *params)
{
	/*
	 * Completions at the next system call, instead of by interrupting a thread (5.19). Not
	 * SINGLE_ISSUER, which DEFER_TASKRUN takes: each driver's queue has a thread of its own,
	 * but a process that is sealed opens no ring.
	 */
	static const uint32_t flags[] = { IORING_SETUP_COOP_TASKRUN, 0 };
	int fd = -1;

	for (unsigned int i = 0; i < sizeof(flags) / sizeof(*flags) && fd < 0; i++) {
		memset(params, 0, sizeof(*params));
		params->flags = flags[i] | IORING_SETUP_R_DISABLED;
		fd = (int)syscall(__NR_io_uring_setup, entries, params);
		if (fd < 0 && errno != EINVAL)
			break;
	}
	return fd;
}

/*
 * Restrict the ring for good, then enable it (5.10). Its operations are not seen by seccomp: one that
 * opens a file would go round the seal. Nothing can be registered any more, nor a flag be set that is
 * not listed. No file is registered either: the thread may read and write any descriptor by other
 * system calls, and a ring gives its files back late, with the lock of a disk's image.
 */
static int restrict_and_enable(int fd)
{
	static const uint8_t operations[] = { IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC,
					      IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL };
	struct io_uring_restriction allowed[sizeof(operations)];

	memset(allowed, 0, sizeof(allowed));
	for (unsigned int i = 0; i < sizeof(operations); i++) {
		allowed[i].opcode = IORING_RESTRICTION_SQE_OP;
		allowed[i].sqe_op = operations[i];
	}
	if (syscall(__NR_io_uring_register, fd, IORING_REGISTER_RESTRICTIONS, allowed,
		    sizeof(operations)) ||
	    syscall(__NR_io_uring_register, fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0))
		return -errno;
	return 0;
}

static uint32_t *at(struct pyvmm_uring *uring, uint32_t offset)
{
	return (uint32_t *)((uint8_t *)uring->rings + offset);
}

/*
 * Open one with room for `entries`. Returns 0, or a negative errno: io_uring does not exist or
 * is not allowed (ENOSYS, EPERM), is too old (EOPNOTSUPP), or there is no memory for it.
 */
int pyvmm_uring_open(struct pyvmm_uring *uring, uint32_t entries)
{
	struct io_uring_params params;
	size_t sq_bytes, cq_bytes;
	uint32_t *array;
	int error;

	memset(uring, 0, sizeof(*uring));
	uring->fd = setup(entries, &params);
	if (uring->fd < 0)
		return -errno;
	error = -EOPNOTSUPP;
	if ((params.features & NEEDED) != NEEDED)
		goto close;
	error = restrict_and_enable(uring->fd);
	if (error)
		goto close;
	sq_bytes = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
	cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	uring->rings_bytes = sq_bytes > cq_bytes ? sq_bytes : cq_bytes;
	uring->entries_bytes = params.sq_entries * sizeof(struct io_uring_sqe);
	uring->rings = mmap(NULL, uring->rings_bytes, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_POPULATE, uring->fd, IORING_OFF_SQ_RING);
	if (uring->rings == MAP_FAILED) {
		error = -errno;
		goto close;
	}
	uring->entries = mmap(NULL, uring->entries_bytes, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_POPULATE, uring->fd, IORING_OFF_SQES);
	if (uring->entries == MAP_FAILED) {
		error = -errno;
		munmap(uring->rings, uring->rings_bytes);
		goto close;
	}
	uring->sq_head = at(uring, params.sq_off.head);
	uring->sq_tail = at(uring, params.sq_off.tail);
	uring->sq_mask = *at(uring, params.sq_off.ring_mask);
	uring->cq_head = at(uring, params.cq_off.head);
	uring->cq_tail = at(uring, params.cq_off.tail);
	uring->cq_mask = *at(uring, params.cq_off.ring_mask);
	uring->completions = (struct io_uring_cqe *)at(uring, params.cq_off.cqes);
	array = at(uring, params.sq_off.array); /* entry i is always in slot i */
	for (uint32_t i = 0; i < params.sq_entries; i++)
		array[i] = i;
	return 0;
close:
	close(uring->fd);
	uring->fd = -1;
	return error;
}

/* Close it. Operations in flight are abandoned. */
void pyvmm_uring_close(struct pyvmm_uring *uring)
{
	munmap(uring->entries, uring->entries_bytes);
	munmap(uring->rings, uring->rings_bytes);
	close(uring->fd);
	uring->fd = -1;
}

/*
 * Return an empty entry, to be filled in before the next call of any function here; NULL if
 * there is no room until `enter` makes some.
 */
struct io_uring_sqe *pyvmm_uring_entry(struct pyvmm_uring *uring)
{
	uint32_t tail = *uring->sq_tail;
	struct io_uring_sqe *entry = &uring->entries[tail & uring->sq_mask];

	if (tail - __atomic_load_n(uring->sq_head, __ATOMIC_ACQUIRE) > uring->sq_mask)
		return NULL;
	memset(entry, 0, sizeof(*entry));
	/* The kernel reads it in `enter` only, because SQPOLL is off. */
	__atomic_store_n(uring->sq_tail, tail + 1, __ATOMIC_RELEASE);
	uring->queued++;
	return entry;
}

/*
 * Submit all entries, and wait for that many completions. Returns 0, or a negative errno: EINTR, a
 * signal; EBUSY, take completions first; EAGAIN, no memory at the moment.
 */
int pyvmm_uring_enter(struct pyvmm_uring *uring, uint32_t wait_for)
{
	long begun = syscall(__NR_io_uring_enter, uring->fd, uring->queued, wait_for,
			     IORING_ENTER_GETEVENTS, NULL, 0);

	if (begun < 0)
		return -errno;
	uring->queued -= (uint32_t)begun;
	return 0;
}

/* Take the next completion. Returns whether there was one. */
int pyvmm_uring_next(struct pyvmm_uring *uring, struct io_uring_cqe *completion)
{
	uint32_t head = *uring->cq_head;

	if (head == __atomic_load_n(uring->cq_tail, __ATOMIC_ACQUIRE))
		return 0;
	*completion = uring->completions[head & uring->cq_mask];
	__atomic_store_n(uring->cq_head, head + 1, __ATOMIC_RELEASE);
	return 1;
}
