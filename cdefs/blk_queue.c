// SPDX-License-Identifier: Apache-2.0
/*
 * A block device's queue and its thread: see blk.h.
 *
 *   doorbell --> pop a batch --> begin each --+--> done at once ------------+--> stage --> publish,
 *                                             '--> io_uring --> completion -'      interrupt
 *
 * A request that would not block is done at once: a write to the page cache is a copy, which
 * io_uring would hand to a kernel thread. Everything else goes to io_uring. The system call that
 * submits also waits for completions, the doorbell and the end. Without io_uring, requests are
 * done one by one.
 *
 * A flush covers the requests completed before it came (5.2.6.2). Requests in flight together
 * have no order, so none is kept: when the driver sees a write used, it is in the file.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/virtio_blk.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>

#include "blk.h"
#include "uring.h"

#define HEADER sizeof(struct virtio_blk_outhdr)
#define BATCH 32  /* requests after which the driver gets its interrupt */

/* user_data of entries that are not requests: request numbers are smaller */
enum { DOORBELL = PYVMM_BLK_DEPTH, STOP, CANCEL };

/* The state of a running thread. */
struct work {
	struct pyvmm_blk_queue *blk;
	uint8_t has_uring;
	uint8_t awaits_doorbell; /* the kernel polls it */
	uint8_t awaits_stop;
	uint8_t cancels; /* of polls, that are under way */
	uint32_t idle_count;
	uint16_t idle[PYVMM_BLK_DEPTH]; /* free slots */
};

/* Report a failure to Python, unless an earlier one is still pending. */
static void report(struct pyvmm_blk_queue *blk, const struct pyvmm_blk_request *request)
{
	struct pyvmm_blk_failure *failure = &blk->failure;

	if (__atomic_load_n(&failure->pending, __ATOMIC_ACQUIRE))
		return;
	failure->type = request->type;
	failure->refused = request->refused;
	failure->error = request->error;
	failure->offset = request->offset;
	__atomic_store_n(&failure->pending, 1, __ATOMIC_RELEASE);
	eventfd_write(blk->trouble, 1);
}

/* Take the pending failure. Returns whether there was one. From any thread. */
int pyvmm_blk_take_failure(struct pyvmm_blk_queue *blk, struct pyvmm_blk_failure *failure)
{
	uint32_t pending = 1;

	if (!__atomic_compare_exchange_n(&blk->failure.pending, &pending, 2, 0, __ATOMIC_ACQUIRE,
					 __ATOMIC_RELAXED))
		return 0;
	*failure = blk->failure;
	__atomic_store_n(&blk->failure.pending, 0, __ATOMIC_RELEASE);
	return 1;
}

static void used(struct work *work, struct pyvmm_blk_request *request)
{
	struct pyvmm_blk_queue *blk = work->blk;

	*request->status = request->result;
	pyvmm_chain_mark(&request->chain);
	pyvmm_dirty_mark(request->chain.dirty, request->status, 1);
	pyvmm_queue_stage(blk->queue, request->chain.id, request->written);
	__atomic_store_n(&blk->requests, blk->requests + 1, __ATOMIC_RELAXED);
	if (request->result == VIRTIO_BLK_S_IOERR)
		__atomic_store_n(&blk->errors, blk->errors + 1, __ATOMIC_RELAXED);
	if (request->error)
		report(blk, request);
	work->idle[work->idle_count++] = (uint16_t)(request - blk->slots);
}

/* --- io_uring --------------------------------------------------------------------------------- */

static struct io_uring_sqe *entry(struct work *work, uint64_t user_data)
{
	struct io_uring_sqe *entry;

	while (!(entry = pyvmm_uring_entry(work->blk->uring)))
		pyvmm_uring_enter(work->blk->uring, 0);
	entry->user_data = user_data;
	return entry;
}

/* Poll the eventfd for each signal (edge-triggered): its count need not be read. */
static void await(struct work *work, int eventfd, uint64_t user_data)
{
	struct io_uring_sqe *sqe = entry(work, user_data);

	sqe->opcode = IORING_OP_POLL_ADD;
	sqe->fd = eventfd;
	sqe->len = IORING_POLL_ADD_MULTI;
	sqe->poll32_events = POLLIN;
}

/* Continue a request: submit what is left, or do it at once. */
static void proceed(struct work *work, struct pyvmm_blk_request *request)
{
	const struct pyvmm_disk *disk = work->blk->disk;
	int syncs = request->operation == PYVMM_BLK_SYNC;
	int direct = !syncs && pyvmm_blk_is_direct(disk, request);
	struct io_uring_sqe *sqe;

	if (!work->has_uring || (request->operation == PYVMM_BLK_WRITE && !direct) ||
	    pyvmm_blk_is_long(request))
		pyvmm_blk_finish(disk, request, &work->blk->stopping);
	if (request->operation == PYVMM_BLK_NOTHING) {
		used(work, request);
		return;
	}
	sqe = entry(work, (uint64_t)(request - work->blk->slots));
	sqe->fd = direct ? disk->direct_fd : disk->fd;
	if (syncs) {
		sqe->opcode = IORING_OP_FSYNC;
		sqe->fsync_flags = IORING_FSYNC_DATASYNC;
		return;
	}
	sqe->opcode = request->operation == PYVMM_BLK_READ ? IORING_OP_READV : IORING_OP_WRITEV;
	sqe->addr = (uintptr_t)request->iov;
	sqe->len = request->count;
	sqe->off = (uint64_t)request->offset;
	if (request->operation == PYVMM_BLK_WRITE && disk->write_through)
		sqe->rw_flags = RWF_DSYNC;
}

/* Handle the kernel's completions. */
static void reap(struct work *work)
{
	struct io_uring_cqe completion;

	while (work->has_uring && pyvmm_uring_next(work->blk->uring, &completion)) {
		struct pyvmm_blk_request *request;

		if (completion.user_data >= PYVMM_BLK_DEPTH) {
			uint8_t awaits = !!(completion.flags & IORING_CQE_F_MORE);

			if (completion.user_data == DOORBELL)
				work->awaits_doorbell = awaits;
			else if (completion.user_data == STOP)
				work->awaits_stop = awaits;
			else
				work->cancels--;
			continue;
		}
		request = &work->blk->slots[completion.user_data];
		switch (completion.res) {
		case -EAGAIN:
		case -EINTR:
		case -EINVAL: /* direct_fd needs more alignment than it said */
		case -EOPNOTSUPP:
			pyvmm_blk_finish(work->blk->disk, request, &work->blk->stopping);
			break;
		default:
			pyvmm_blk_advance(request, completion.res);
		}
		proceed(work, request);
	}
}

/* --- The thread ------------------------------------------------------------------------------- */

/* Pop and begin some requests. Returns how many, or an enum pyvmm_ring_error. */
static int begin(struct work *work)
{
	struct pyvmm_blk_queue *blk = work->blk;
	int count = 0;

	while (count < BATCH && work->idle_count) {
		struct pyvmm_blk_request *request = &blk->slots[work->idle[work->idle_count - 1]];
		int result = pyvmm_queue_pop(blk->queue, &request->chain);

		if (result <= 0)
			return result ? result : count;
		if (request->chain.readable_bytes < HEADER || !request->chain.writable_bytes)
			return PYVMM_RING_REQUEST;
		work->idle_count--;
		count++;
		pyvmm_blk_begin(blk->disk, request, &blk->stopping);
		proceed(work, request);
		if (__atomic_load_n(&blk->stopping, __ATOMIC_RELAXED))
			break;
	}
	return count;
}

static void tell(struct work *work)
{
	struct pyvmm_blk_queue *blk = work->blk;

	pyvmm_queue_publish(blk->queue);
	if (pyvmm_queue_should_interrupt(blk->queue))
		pyvmm_interrupt_raise(blk->interrupt, blk->bits);
}

/* Submit the entries, and wait for so many completions. */
static void submit(struct work *work, uint32_t wait_for)
{
	static const struct timespec moment = { .tv_nsec = 1000000 };
	int error = pyvmm_uring_enter(work->blk->uring, wait_for);

	if (error && error != -EINTR && error != -EBUSY)
		nanosleep(&moment, NULL); /* the host is out of memory: try again later */
}

/* Submit the entries and what wakes the thread; with `wait`, wait for a completion. */
static void enter(struct work *work, int wait)
{
	if (!work->awaits_doorbell)
		await(work, work->blk->doorbell, DOORBELL);
	if (!work->awaits_stop)
		await(work, work->blk->stop, STOP);
	work->awaits_doorbell = work->awaits_stop = 1;
	submit(work, wait ? 1 : 0);
}

/* Take the polls back: the next driver's thread finds a ring with nothing in flight. */
static void settle(struct work *work)
{
	for (uint64_t user_data = DOORBELL; user_data <= STOP; user_data++) {
		struct io_uring_sqe *sqe = entry(work, CANCEL);

		/* Not POLL_REMOVE: of a poll that is about to complete it removes nothing (EALREADY). */
		sqe->opcode = IORING_OP_ASYNC_CANCEL;
		sqe->fd = -1;
		sqe->addr = user_data;
		work->cancels++; /* without such a poll it fails, and completes all the same */
	}
	while (work->awaits_doorbell || work->awaits_stop || work->cancels) {
		submit(work, 1);
		reap(work);
	}
}

/* The same without io_uring. */
static void wait_one_by_one(const struct pyvmm_blk_queue *blk)
{
	struct pollfd fds[2] = {
		{ .fd = blk->stop, .events = POLLIN },
		{ .fd = blk->doorbell, .events = POLLIN },
	};
	eventfd_t count;

	if (poll(fds, 2, -1) > 0 && fds[1].revents)
		eventfd_read(blk->doorbell, &count);
}

static int serve(struct work *work)
{
	struct pyvmm_blk_queue *blk = work->blk;
	int wrong = 0;

	for (;;) {
		int begun = 0;
		int ends = wrong || __atomic_load_n(&blk->stopping, __ATOMIC_RELAXED);

		reap(work);
		if (!ends) {
			pyvmm_queue_disable_notify(blk->queue);
			begun = begin(work);
			if (begun < 0)
				ends = wrong = begun;
		}
		tell(work);
		if (ends && work->idle_count == PYVMM_BLK_DEPTH)
			return wrong;
		if (begun == BATCH) {
			/* Requests in flight complete in a system call (IORING_SETUP_COOP_TASKRUN). */
			if (work->has_uring && work->idle_count < PYVMM_BLK_DEPTH)
				enter(work, 0);
			continue;
		}
		/* While all slots are taken, only a completion wakes the thread. */
		if (!ends && work->idle_count && pyvmm_queue_enable_notify(blk->queue))
			continue;
		if (work->has_uring)
			enter(work, 1);
		else
			wait_one_by_one(blk);
	}
}

/*
 * Serve the queue until pyvmm_blk_stop. Returns 0 then, or an enum pyvmm_ring_error. No request is
 * in flight when this returns.
 */
int pyvmm_blk_run(struct pyvmm_blk_queue *blk)
{
	struct work work = { .blk = blk, .idle_count = PYVMM_BLK_DEPTH };
	int wrong;

	for (uint16_t i = 0; i < PYVMM_BLK_DEPTH; i++)
		work.idle[i] = (uint16_t)(PYVMM_BLK_DEPTH - 1 - i);
	work.has_uring = blk->uring && !blk->disk->one_by_one;
	__atomic_store_n(&blk->uses_uring, work.has_uring, __ATOMIC_RELAXED);
	wrong = serve(&work);
	if (work.has_uring)
		settle(&work);
	return wrong;
}

/*
 * Open an io_uring for queues' threads, one at a time; pyvmm_uring_close closes it. Returns 0 or
 * -errno: without one, requests are done one by one.
 */
int pyvmm_blk_open_uring(struct pyvmm_uring *uring)
{
	return pyvmm_uring_open(uring, 2 * PYVMM_BLK_DEPTH);
}

/* Make pyvmm_blk_run return after the requests in flight (enum pyvmm_blk_end). From any thread. */
void pyvmm_blk_stop(struct pyvmm_blk_queue *blk, uint32_t how)
{
	__atomic_store_n(&blk->stopping, how, __ATOMIC_RELAXED);
	eventfd_write(blk->stop, 1);
}
