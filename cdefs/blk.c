// SPDX-License-Identifier: Apache-2.0
/*
 * Block requests from a virtqueue to a file: see blk.h. One thread per queue waits, reads and
 * writes here, without Python; data goes between the guest's memory and the kernel directly.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/virtio_blk.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "blk.h"

#define SECTOR 512
#define HEADER sizeof(struct virtio_blk_outhdr)

static const uint8_t zeroes[1 << 16];

/* --- Buffers --------------------------------------------------------------------------------- */

/* Take `bytes` off the front of *count buffers. */
static void skip(struct iovec **iov, uint32_t *count, uint64_t bytes)
{
	while (*count && bytes >= (*iov)->iov_len) {
		bytes -= (*iov)->iov_len;
		(*iov)++;
		(*count)--;
	}
	if (*count && bytes) {
		(*iov)->iov_base = (uint8_t *)(*iov)->iov_base + bytes;
		(*iov)->iov_len -= bytes;
	}
}

static void zero(struct iovec *iov, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		memset(iov[i].iov_base, 0, iov[i].iov_len);
}

/* Take the last byte of the device-writable buffers off, and return where it is: the status. */
static uint8_t *take_status(struct pyvmm_chain *chain)
{
	struct iovec *last = &chain->segments[chain->readable + chain->writable - 1];
	uint8_t *status = (uint8_t *)last->iov_base + --last->iov_len;

	if (!last->iov_len)
		chain->writable--;
	chain->writable_bytes--;
	return status;
}

/* --- Requests: each returns a status (5.2.6) -------------------------------------------------- */

static int outside(const struct pyvmm_disk *disk, uint64_t sector, uint64_t sectors)
{
	return sector > disk->sectors || sectors > disk->sectors - sector;
}

/* Read or write all of it, whatever the kernel does at a time. What cannot be read is zeroes. */
static int transfer(const struct pyvmm_disk *disk, struct iovec *iov, uint32_t count,
		    uint64_t bytes, uint64_t sector, int writing)
{
	off_t offset = (off_t)(sector * SECTOR);

	int bad = bytes % SECTOR || outside(disk, sector, bytes / SECTOR);

	while (bytes) {
		ssize_t done;

		if (bad)
			done = -1;
		else if (writing)
			done = pwritev2(disk->fd, iov, (int)count, offset,
					disk->write_through ? RWF_DSYNC : 0);
		else
			done = preadv(disk->fd, iov, (int)count, offset);
		if (done < 0 && !bad && errno == EINTR)
			continue;
		if (done <= 0) { /* at 0, the file is shorter than it was */
			if (!writing)
				zero(iov, count);
			return VIRTIO_BLK_S_IOERR;
		}
		bytes -= (uint64_t)done;
		offset += done;
		skip(&iov, &count, (uint64_t)done);
	}
	return VIRTIO_BLK_S_OK;
}

static int flush(const struct pyvmm_disk *disk)
{
	return fdatasync(disk->fd) ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
}

/* Write zeroes the slow way, for file systems that know no better. */
static int write_zeroes(const struct pyvmm_disk *disk, off_t offset, uint64_t bytes)
{
	while (bytes) {
		size_t part = bytes < sizeof(zeroes) ? bytes : sizeof(zeroes);
		ssize_t done = pwrite(disk->fd, zeroes, part, offset);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return -1;
		offset += done;
		bytes -= (uint64_t)done;
	}
	return 0;
}

static int allocate(const struct pyvmm_disk *disk, int mode, off_t offset, uint64_t bytes)
{
	int result;

	do
		result = fallocate(disk->fd, mode | FALLOC_FL_KEEP_SIZE, offset, (off_t)bytes);
	while (result && errno == EINTR);
	return result;
}

/* One range of a discard or write-zeroes request. */
static int clear(const struct pyvmm_disk *disk, uint32_t type,
		 const struct virtio_blk_discard_write_zeroes *range)
{
	uint64_t bytes = (uint64_t)range->num_sectors * SECTOR;
	off_t offset = (off_t)(range->sector * SECTOR);
	int unmap = range->flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

	if (range->flags & ~(uint32_t)VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP ||
	    (unmap && type == VIRTIO_BLK_T_DISCARD))
		return VIRTIO_BLK_S_UNSUPP;
	if (range->num_sectors > PYVMM_BLK_MAX_SECTORS ||
	    outside(disk, range->sector, range->num_sectors))
		return VIRTIO_BLK_S_IOERR;
	if (!bytes)
		return VIRTIO_BLK_S_OK;
	if (type == VIRTIO_BLK_T_DISCARD) {
		/* A hint: what cannot be given back stays. */
		if (allocate(disk, FALLOC_FL_PUNCH_HOLE, offset, bytes) && errno != EOPNOTSUPP)
			return VIRTIO_BLK_S_IOERR;
		return VIRTIO_BLK_S_OK;
	}
	if (unmap && !allocate(disk, FALLOC_FL_PUNCH_HOLE, offset, bytes))
		return VIRTIO_BLK_S_OK;
	if (allocate(disk, FALLOC_FL_ZERO_RANGE, offset, bytes) &&
	    (errno != EOPNOTSUPP || write_zeroes(disk, offset, bytes)))
		return VIRTIO_BLK_S_IOERR;
	return VIRTIO_BLK_S_OK;
}

static int clear_all(const struct pyvmm_disk *disk, const struct pyvmm_chain *chain, uint32_t type)
{
	struct virtio_blk_discard_write_zeroes ranges[PYVMM_BLK_MAX_RANGES];
	uint64_t bytes = chain->readable_bytes - HEADER;
	int status = VIRTIO_BLK_S_OK;

	if (disk->read_only || !bytes || bytes % sizeof(*ranges) || bytes > sizeof(ranges))
		return VIRTIO_BLK_S_IOERR;
	pyvmm_chain_read(chain, HEADER, ranges, bytes);
	for (uint64_t i = 0; i < bytes / sizeof(*ranges) && status == VIRTIO_BLK_S_OK; i++)
		status = clear(disk, type, &ranges[i]);
	if (status == VIRTIO_BLK_S_OK && disk->write_through)
		status = flush(disk);
	return status;
}

static int handle(const struct pyvmm_disk *disk, struct pyvmm_chain *chain)
{
	struct iovec *iov = chain->segments;
	struct virtio_blk_outhdr header;
	uint32_t count;

	pyvmm_chain_read(chain, 0, &header, sizeof(header));
	if (header.type == VIRTIO_BLK_T_IN)
		return transfer(disk, iov + chain->readable, chain->writable,
				chain->writable_bytes, header.sector, 0);
	/* The driver is told that all it gave us was written: nothing else is to be there. */
	zero(iov + chain->readable, chain->writable);
	switch (header.type) {
	case VIRTIO_BLK_T_OUT:
		if (disk->read_only)
			return VIRTIO_BLK_S_IOERR;
		count = chain->readable;
		skip(&iov, &count, HEADER);
		return transfer(disk, iov, count, chain->readable_bytes - HEADER, header.sector, 1);
	case VIRTIO_BLK_T_FLUSH:
		return flush(disk);
	case VIRTIO_BLK_T_GET_ID:
		pyvmm_chain_write(chain, 0, disk->serial, sizeof(disk->serial));
		return VIRTIO_BLK_S_OK;
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		return clear_all(disk, chain, header.type);
	default:
		return VIRTIO_BLK_S_UNSUPP;
	}
}

/* --- A queue's thread ------------------------------------------------------------------------- */

/* Do one request. Returns how many bytes were written to the guest. */
static uint32_t serve(struct pyvmm_blk_queue *blk)
{
	struct pyvmm_chain *chain = blk->chain;
	uint64_t written = chain->writable_bytes;
	uint8_t *status = take_status(chain);
	int result = handle(blk->disk, chain);

	*status = (uint8_t)result;
	__atomic_store_n(&blk->requests, blk->requests + 1, __ATOMIC_RELAXED);
	if (result == VIRTIO_BLK_S_IOERR)
		__atomic_store_n(&blk->errors, blk->errors + 1, __ATOMIC_RELAXED);
	/* 32 bits have no room for 4 GiB (5.2.6: nobody looks). */
	return written > UINT32_MAX ? UINT32_MAX : (uint32_t)written;
}

/* Do all requests that wait. Returns 0, or what is wrong with the ring. */
static int drain(struct pyvmm_blk_queue *blk)
{
	int result;

	do {
		pyvmm_queue_disable_notify(blk->queue);
		while ((result = pyvmm_queue_pop(blk->queue, blk->chain)) > 0) {
			uint16_t id = blk->chain->id;

			if (blk->chain->readable_bytes < HEADER || !blk->chain->writable_bytes)
				return PYVMM_RING_REQUEST;
			pyvmm_queue_push(blk->queue, id, serve(blk));
			if (pyvmm_queue_should_interrupt(blk->queue))
				pyvmm_interrupt_raise(blk->interrupt, blk->bits);
			if (__atomic_load_n(&blk->stopping, __ATOMIC_RELAXED))
				return 0;
		}
		if (result < 0)
			return result;
	} while (pyvmm_queue_enable_notify(blk->queue));
	return 0;
}

/*
 * Serve the queue until pyvmm_blk_stop. Returns 0 then, or at once what is wrong with the
 * ring: one of enum pyvmm_ring_error. No request is under way when this has returned.
 */
int pyvmm_blk_run(struct pyvmm_blk_queue *blk)
{
	struct pollfd fds[2] = {
		{ .fd = blk->stop, .events = POLLIN },
		{ .fd = blk->doorbell, .events = POLLIN },
	};
	int result;

	for (;;) {
		uint64_t count;

		if (poll(fds, 2, -1) < 0)
			continue; /* EINTR */
		if (fds[0].revents)
			return 0;
		if (read(blk->doorbell, &count, sizeof(count)) < 0)
			continue; /* somebody else has emptied it */
		result = drain(blk);
		if (result)
			return result;
	}
}

/* Have pyvmm_blk_run return after the present request. From any thread. */
void pyvmm_blk_stop(struct pyvmm_blk_queue *blk)
{
	uint64_t one = 1;

	__atomic_store_n(&blk->stopping, 1, __ATOMIC_RELAXED);
	if (write(blk->stop, &one, sizeof(one)) < 0)
		return; /* signalled often enough */
}
