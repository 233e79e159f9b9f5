// SPDX-License-Identifier: Apache-2.0
/*
 * Decode and do block requests: see blk.h. Data goes directly between the guest's memory and the
 * kernel. Everything that is checked is read from guest memory once, before.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/stat.h>
#include <linux/virtio_blk.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "blk.h"

#define SECTOR 512
#define HEADER sizeof(struct virtio_blk_outhdr)

#define PART (4 << 20) /* bytes to clear or move before the next look whether the queue stops */

static const uint8_t zeroes[1 << 16];

/* --- Buffers --------------------------------------------------------------------------------- */

/* Remove the first `bytes` of *count buffers. */
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

/* Copy the first `bytes`, which are there, to `target`. */
static void gather(const struct iovec *iov, uint8_t *target, uint64_t bytes)
{
	for (; bytes; iov++) {
		uint64_t part = iov->iov_len < bytes ? iov->iov_len : bytes;

		memcpy(target, iov->iov_base, part);
		target += part;
		bytes -= part;
	}
}

static void zero(struct iovec *iov, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		memset(iov[i].iov_base, 0, iov[i].iov_len);
}

/* Remove the last device-writable byte, the status, and return its address. */
static uint8_t *take_status(struct pyvmm_chain *chain)
{
	struct iovec *last = &chain->segments[chain->readable + chain->writable - 1];
	uint8_t *status = (uint8_t *)last->iov_base + --last->iov_len;

	if (!last->iov_len)
		chain->writable--;
	chain->writable_bytes--;
	return status;
}

/* --- Requests (5.2.6) ------------------------------------------------------------------------- */

static int outside(const struct pyvmm_disk *disk, uint64_t sector, uint64_t sectors)
{
	return sector > disk->sectors || sectors > disk->sectors - sector;
}

static int stops(const uint32_t *stopping)
{
	return __atomic_load_n(stopping, __ATOMIC_RELAXED) == PYVMM_BLK_STOP;
}

/* Write zeroes as data, for file systems without fallocate(2). */
static int write_zeroes(const struct pyvmm_disk *disk, off_t offset, uint64_t bytes)
{
	while (bytes) {
		size_t part = bytes < sizeof(zeroes) ? bytes : sizeof(zeroes);
		ssize_t done = pwrite(disk->fd, zeroes, part, offset);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done ? -errno : -EIO;
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
	return result ? -errno : 0;
}

/* Returns 0 or a negative errno. */
static int clear(const struct pyvmm_disk *disk, uint32_t type, int unmap, off_t offset,
		 uint64_t bytes)
{
	int error = -EOPNOTSUPP;

	if (type == VIRTIO_BLK_T_DISCARD) {
		/* Only a hint: a file system that cannot punch holes keeps the data. */
		error = allocate(disk, FALLOC_FL_PUNCH_HOLE, offset, bytes);
		return error == -EOPNOTSUPP ? 0 : error;
	}
	if (unmap)
		error = allocate(disk, FALLOC_FL_PUNCH_HOLE, offset, bytes);
	if (error)
		error = allocate(disk, FALLOC_FL_ZERO_RANGE, offset, bytes);
	return error == -EOPNOTSUPP ? write_zeroes(disk, offset, bytes) : error;
}

/* One range of a discard or write-zeroes request. A queue that stops leaves the rest as it is. */
static void clear_range(const struct pyvmm_disk *disk, struct pyvmm_blk_request *request,
			const struct virtio_blk_discard_write_zeroes *range,
			const uint32_t *stopping)
{
	int unmap = range->flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
	uint32_t most = request->type == VIRTIO_BLK_T_DISCARD ? PYVMM_BLK_DISCARD_SECTORS
							      : PYVMM_BLK_ZEROES_SECTORS;
	uint64_t left = (uint64_t)range->num_sectors * SECTOR;

	if (range->flags & ~(uint32_t)VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP ||
	    (unmap && request->type == VIRTIO_BLK_T_DISCARD)) {
		request->result = VIRTIO_BLK_S_UNSUPP;
		return;
	}
	if (range->num_sectors > most || outside(disk, range->sector, range->num_sectors)) {
		request->result = VIRTIO_BLK_S_IOERR;
		return;
	}
	request->offset = (int64_t)(range->sector * SECTOR);
	while (left && !request->error && !stops(stopping)) {
		uint64_t part = PART - (uint64_t)request->offset % PART; /* whole blocks to punch */

		part = part < left ? part : left;
		request->error = -clear(disk, request->type, unmap, request->offset, part);
		if (!request->error)
			request->offset += (int64_t)part;
		left -= part;
	}
	if (request->error || stops(stopping))
		request->result = VIRTIO_BLK_S_IOERR;
}

static void clear_all(const struct pyvmm_disk *disk, struct pyvmm_blk_request *request,
		      const uint32_t *stopping)
{
	struct virtio_blk_discard_write_zeroes ranges[PYVMM_BLK_DISCARD_RANGES];
	uint64_t most = request->type == VIRTIO_BLK_T_DISCARD ? PYVMM_BLK_DISCARD_RANGES
							      : PYVMM_BLK_ZEROES_RANGES;
	uint64_t bytes = request->chain.readable_bytes - HEADER;

	if (disk->read_only || !bytes || bytes % sizeof(*ranges) || bytes > most * sizeof(*ranges)) {
		request->result = VIRTIO_BLK_S_IOERR;
		return;
	}
	pyvmm_chain_read(&request->chain, HEADER, ranges, bytes);
	for (uint64_t i = 0; i < bytes / sizeof(*ranges); i++) {
		clear_range(disk, request, &ranges[i], stopping);
		if (request->result != VIRTIO_BLK_S_OK)
			return;
	}
	if (disk->write_through)
		request->operation = PYVMM_BLK_SYNC;
}

static int looks_foreign(const struct pyvmm_disk *disk, const uint8_t *start)
{
	for (uint32_t i = 0; i < disk->magic_count; i++)
		if (!memcmp(start, disk->magics[i].bytes, disk->magics[i].length))
			return 1;
	return 0;
}

/*
 * Write the disk's first sector from a copy that was looked at, since the guest may change its
 * buffers meanwhile. What is left of the request begins with the second sector.
 */
static void write_start(const struct pyvmm_disk *disk, struct pyvmm_blk_request *request,
			const uint32_t *stopping)
{
	uint8_t start[SECTOR];
	struct iovec iov = { .iov_base = start, .iov_len = sizeof(start) };
	struct pyvmm_blk_request first = {
		.operation = PYVMM_BLK_WRITE, .iov = &iov, .count = 1, .bytes = sizeof(start),
	};

	gather(request->iov, start, sizeof(start));
	request->refused = (uint8_t)looks_foreign(disk, start);
	if (!request->refused)
		pyvmm_blk_finish(disk, &first, stopping);
	request->error = request->refused ? EPERM : first.error;
	if (request->error)
		pyvmm_blk_fail(request);
	else
		pyvmm_blk_advance(request, sizeof(start));
}

static void begin_transfer(const struct pyvmm_disk *disk, struct pyvmm_blk_request *request,
			   uint64_t sector)
{
	uint64_t bytes = request->bytes;

	if (bytes % SECTOR || outside(disk, sector, bytes / SECTOR))
		pyvmm_blk_fail(request);
	else
		request->offset = (int64_t)(sector * SECTOR);
}

/*
 * Decode a request, whose chain has a header and room for a status. Do it at once unless it reads,
 * writes or syncs. Bytes that are not read in the end are zeroes. What takes long ends early, with
 * an I/O error, once *stopping is set.
 */
void pyvmm_blk_begin(const struct pyvmm_disk *disk, struct pyvmm_blk_request *request,
		     const uint32_t *stopping)
{
	struct pyvmm_chain *chain = &request->chain;
	struct virtio_blk_outhdr header;

	/* The used length has 32 bits; drivers do not look at it (5.2.6). */
	request->written = chain->writable_bytes > UINT32_MAX ? UINT32_MAX :
								(uint32_t)chain->writable_bytes;
	request->status = take_status(chain);
	request->operation = PYVMM_BLK_NOTHING;
	request->result = VIRTIO_BLK_S_OK;
	request->error = 0;
	request->refused = 0;
	request->offset = 0;
	request->bytes = 0;
	request->count = 0;
	request->iov = chain->segments;
	pyvmm_chain_read(chain, 0, &header, sizeof(header));
	request->type = header.type;
	if (header.type == VIRTIO_BLK_T_IN) {
		request->iov += chain->readable;
		request->count = chain->writable;
		request->bytes = chain->writable_bytes;
		request->operation = request->bytes ? PYVMM_BLK_READ : PYVMM_BLK_NOTHING;
		begin_transfer(disk, request, header.sector);
		return;
	}
	/* All device-writable bytes count as written, so they must not keep older data. */
	zero(request->iov + chain->readable, chain->writable);
	switch (header.type) {
	case VIRTIO_BLK_T_OUT:
		request->count = chain->readable;
		request->bytes = chain->readable_bytes - HEADER;
		request->operation = request->bytes ? PYVMM_BLK_WRITE : PYVMM_BLK_NOTHING;
		skip(&request->iov, &request->count, HEADER);
		if (disk->read_only)
			pyvmm_blk_fail(request);
		else
			begin_transfer(disk, request, header.sector);
		if (disk->magic_count && !header.sector && request->operation == PYVMM_BLK_WRITE)
			write_start(disk, request, stopping);
		break;
	case VIRTIO_BLK_T_FLUSH:
		request->operation = disk->no_flush ? PYVMM_BLK_NOTHING : PYVMM_BLK_SYNC;
		break;
	case VIRTIO_BLK_T_GET_ID:
		pyvmm_chain_write(chain, 0, disk->serial, sizeof(disk->serial));
		break;
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		clear_all(disk, request, stopping);
		break;
	default:
		request->result = VIRTIO_BLK_S_UNSUPP;
	}
}

/* Fail the request: drop what is left to do. */
void pyvmm_blk_fail(struct pyvmm_blk_request *request)
{
	if (request->operation == PYVMM_BLK_READ)
		zero(request->iov, request->count);
	request->operation = PYVMM_BLK_NOTHING;
	request->result = VIRTIO_BLK_S_IOERR;
}

/* Return whether what is left is aligned for direct_fd. */
int pyvmm_blk_is_direct(const struct pyvmm_disk *disk, const struct pyvmm_blk_request *request)
{
	uint64_t all = 0;

	if (disk->direct_fd < 0)
		return 0;
	for (uint32_t i = 0; i < request->count; i++)
		all |= (uintptr_t)request->iov[i].iov_base | request->iov[i].iov_len;
	return !(all % disk->direct_memory) &&
	       !((request->bytes | (uint64_t)request->offset) % disk->direct_offset);
}

/*
 * Account for the result of a read, write or sync: the bytes done, or a negative errno. Returns
 * whether something is left to do.
 */
int pyvmm_blk_advance(struct pyvmm_blk_request *request, int64_t done)
{
	if (done == -EINTR || done == -EAGAIN)
		return 1;
	if (request->operation == PYVMM_BLK_SYNC ? done < 0 : done <= 0) {
		request->error = done ? (int)-done : ENODATA; /* the file was truncated */
		pyvmm_blk_fail(request);
		return 0;
	}
	if (request->operation != PYVMM_BLK_SYNC && (uint64_t)done < request->bytes) {
		request->bytes -= (uint64_t)done;
		request->offset += done;
		pyvmm_chain_mark(&request->chain); /* before its buffers are cut */
		skip(&request->iov, &request->count, (uint64_t)done);
		return 1;
	}
	request->operation = PYVMM_BLK_NOTHING;
	return 0;
}

/* Return whether the request is to be done in parts, with a look at the stop between them. */
int pyvmm_blk_is_long(const struct pyvmm_blk_request *request)
{
	return request->bytes > PART;
}

/* Do one part of what is left. Returns the bytes done, or -1 with errno. */
static int64_t try(const struct pyvmm_disk *disk, const struct pyvmm_blk_request *request, int fd)
{
	const struct iovec *iov = request->iov;
	struct iovec first = { .iov_len = PART };
	uint64_t bytes = 0;
	int count = 0;

	if (request->operation == PYVMM_BLK_SYNC)
		return fdatasync(fd);
	while (count < (int)request->count && bytes + iov[count].iov_len <= PART)
		bytes += iov[count++].iov_len;
	if (!count) {
		first.iov_base = iov->iov_base;
		iov = &first;
		count = 1;
	}
	if (request->operation == PYVMM_BLK_READ)
		return preadv(fd, iov, count, request->offset);
	return pwritev2(fd, iov, count, request->offset, disk->write_through ? RWF_DSYNC : 0);
}

/* Do what is left, synchronously. It ends early, with an I/O error, once *stopping is set. */
void pyvmm_blk_finish(const struct pyvmm_disk *disk, struct pyvmm_blk_request *request,
		      const uint32_t *stopping)
{
	int direct_works = 1;
	int64_t done;

	while (request->operation != PYVMM_BLK_NOTHING) {
		int direct = direct_works && request->operation != PYVMM_BLK_SYNC &&
			     pyvmm_blk_is_direct(disk, request);

		done = try(disk, request, direct ? disk->direct_fd : disk->fd);
		if (done < 0 && direct && errno == EINVAL)
			direct_works = 0; /* it needs more alignment than it said */
		else
			pyvmm_blk_advance(request, done < 0 ? -errno : done);
		if (pyvmm_blk_is_long(request) && stops(stopping))
			pyvmm_blk_fail(request);
	}
}

/* --- Files ------------------------------------------------------------------------------------ */

/*
 * Ask for the alignment that direct I/O on a file needs (statx(2), since Linux 6.1). Returns 0,
 * or -1 if the file system does not say.
 */
int pyvmm_blk_alignment(int fd, uint32_t *memory, uint32_t *offset)
{
	struct statx found;

	memset(&found, 0, sizeof(found));
	if (syscall(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &found) ||
	    !(found.stx_mask & STATX_DIOALIGN) || !found.stx_dio_offset_align)
		return -1;
	*memory = found.stx_dio_mem_align;
	*offset = found.stx_dio_offset_align;
	return 0;
}
