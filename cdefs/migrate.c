// SPDX-License-Identifier: Apache-2.0
/*
 * The bulk of live migration: dirty pages from guest RAM to a socket, and from there into RAM.
 *
 * Sockets block, with SO_SNDTIMEO and SO_RCVTIMEO: a peer that does nothing is ETIMEDOUT.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "migrate.h"

/* From copy.c. */
uint64_t pyvmm_zero_prefix(const void *from, size_t size);

#define MOST_RAW (UINT64_C(4) << 20) /* bytes of pages in a frame that we send */

struct run {
	uint64_t offset;
	uint64_t length;
};

_Static_assert(sizeof(struct pyvmm_frame) == 16 && sizeof(struct run) == 16,
	       "what is on the stream has no padding");

/* --- Dirty pages ------------------------------------------------------------------------------ */

/* Mark from Python. */
void pyvmm_dirty_note(struct pyvmm_dirty *dirty, const void *at, uint64_t length)
{
	pyvmm_dirty_mark(dirty, at, length);
}

/* Move all marks to the bitmap `into`, which keeps its own. Returns how many were moved. */
uint64_t pyvmm_dirty_take(struct pyvmm_dirty *dirty, uint64_t *into)
{
	uint64_t pages = (dirty->size + (UINT64_C(1) << dirty->shift) - 1) >> dirty->shift;
	uint64_t count = 0;

	if (!dirty->bitmap)
		return 0;
	for (uint64_t i = 0; i < (pages + 63) / 64; i++) {
		uint64_t word;

		if (!__atomic_load_n(&dirty->bitmap[i], __ATOMIC_RELAXED))
			continue;
		word = __atomic_exchange_n(&dirty->bitmap[i], 0, __ATOMIC_ACQUIRE);
		into[i] |= word;
		count += (uint64_t)__builtin_popcountll(word);
	}
	return count;
}

/* Add the bits of `from` to `to`. Returns how many are set then. */
uint64_t pyvmm_bitmap_merge(uint64_t *to, const uint64_t *from, uint64_t bits)
{
	uint64_t count = 0;

	for (uint64_t i = 0; i < (bits + 63) / 64; i++)
		count += (uint64_t)__builtin_popcountll(to[i] |= from[i]);
	return count;
}

/* --- Whole vectors through a socket ------------------------------------------------------------ */

/* Remove the first `done` bytes. */
static void skip(struct msghdr *message, size_t done)
{
	while (message->msg_iovlen && done >= message->msg_iov->iov_len) {
		done -= message->msg_iov->iov_len;
		message->msg_iov++;
		message->msg_iovlen--;
	}
	if (message->msg_iovlen) {
		message->msg_iov->iov_base = (uint8_t *)message->msg_iov->iov_base + done;
		message->msg_iov->iov_len -= done;
	}
}

static int send_all(int fd, struct iovec *iov, size_t count)
{
	struct msghdr message = { .msg_iov = iov, .msg_iovlen = count };

	while (message.msg_iovlen) {
		ssize_t done = sendmsg(fd, &message, MSG_NOSIGNAL);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		skip(&message, (size_t)done);
	}
	return 0;
}

/* Returns 0, or -errno: at the end of the stream ECONNRESET, or ENODATA where nothing was read. */
static int receive_all(int fd, struct iovec *iov, size_t count)
{
	struct msghdr message = { .msg_iov = iov, .msg_iovlen = count };
	int begun = 0;

	while (message.msg_iovlen) {
		ssize_t done = recvmsg(fd, &message, MSG_WAITALL);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		if (!done)
			return begun ? -ECONNRESET : -ENODATA;
		begun = 1;
		skip(&message, (size_t)done);
	}
	return 0;
}

/* --- The sender -------------------------------------------------------------------------------- */

/* The frame that is filled. */
struct filling {
	int fd;
	const uint8_t *ram;
	uint32_t kind;
	uint32_t count;
	uint64_t bytes; /* of pages */
	struct run runs[PYVMM_FRAME_RUNS];
	struct pyvmm_moved *moved;
};

static int flush(struct filling *frame)
{
	struct pyvmm_frame header = { frame->kind, frame->count, 0 };
	struct iovec iov[2 + PYVMM_FRAME_RUNS];
	size_t parts = 2;
	int error;

	if (!frame->count)
		return 0;
	header.size = frame->count * sizeof(struct run);
	iov[0] = (struct iovec){ &header, sizeof(header) };
	iov[1] = (struct iovec){ frame->runs, header.size };
	if (frame->kind == PYVMM_FRAME_RAW) {
		header.size += frame->bytes;
		for (uint32_t i = 0; i < frame->count; i++)
			iov[parts++] = (struct iovec){ (void *)(frame->ram + frame->runs[i].offset),
						       frame->runs[i].length };
	}
	error = send_all(frame->fd, iov, parts);
	if (error)
		return error;
	frame->moved->frames++;
	frame->moved->wire += sizeof(header) + header.size;
	*(frame->kind == PYVMM_FRAME_RAW ? &frame->moved->raw : &frame->moved->zero) += frame->bytes;
	frame->count = 0;
	frame->bytes = 0;
	return 0;
}

/* Append a page to the frame; send the frame first if the page does not go with it. */
static int append(struct filling *frame, uint32_t kind, uint64_t offset, uint64_t length)
{
	struct run *last = frame->count ? &frame->runs[frame->count - 1] : NULL;
	int error;

	if (frame->kind != kind || (kind == PYVMM_FRAME_RAW && frame->bytes >= MOST_RAW)) {
		error = flush(frame);
		if (error)
			return error;
		frame->kind = kind;
		last = NULL;
	}
	frame->bytes += length;
	if (last && frame->count && last->offset + last->length == offset) {
		last->length += length;
		return 0;
	}
	if (frame->count == PYVMM_FRAME_RUNS) {
		frame->bytes -= length;
		error = flush(frame);
		if (error)
			return error;
		frame->bytes = length;
	}
	frame->runs[frame->count++] = (struct run){ offset, length };
	return 0;
}

/*
 * Send those of `pages` pages from page `from` on that are set in the bitmap, of which bit 0 is page
 * `from`. The last page of RAM may be a part of one. Returns 0 or -errno; *moved grows either way.
 */
int pyvmm_send_pages(int fd, const uint8_t *ram, uint64_t size, uint32_t shift,
		     const uint64_t *bitmap, uint64_t from, uint64_t pages,
		     struct pyvmm_moved *moved)
{
	struct filling frame = { .fd = fd, .ram = ram, .moved = moved };
	uint64_t page = UINT64_C(1) << shift;

	for (uint64_t i = 0; i < pages; i++) {
		uint64_t offset = (from + i) << shift, length;
		int error;

		if (!bitmap[i / 64]) {
			i |= 63;
			continue;
		}
		if (!(bitmap[i / 64] >> i % 64 & 1))
			continue;
		if (offset >= size)
			break;
		length = size - offset < page ? size - offset : page;
		error = append(&frame,
			       pyvmm_zero_prefix(ram + offset, length) == length ? PYVMM_FRAME_ZERO
										 : PYVMM_FRAME_RAW,
			       offset, length);
		if (error)
			return error;
	}
	return flush(&frame);
}

/* --- The receiver ------------------------------------------------------------------------------ */

/* Check the runs of a frame. Returns 0 or an enum pyvmm_stream_error. */
static int check(const struct pyvmm_frame *frame, const struct run *runs, uint64_t size,
		 uint64_t page)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < frame->count; i++) {
		if (runs[i].offset % page || runs[i].offset >= size)
			return PYVMM_STREAM_OFFSET;
		if (!runs[i].length || runs[i].length > size - runs[i].offset)
			return PYVMM_STREAM_LENGTH;
		if (runs[i].length % page && runs[i].offset + runs[i].length != size)
			return PYVMM_STREAM_LENGTH;
		bytes += runs[i].length; /* at most 256 times the bytes of RAM */
	}
	if (frame->kind == PYVMM_FRAME_ZERO)
		bytes = 0;
	return frame->size - frame->count * sizeof(*runs) == bytes ? 0 : PYVMM_STREAM_SIZE;
}

static void note(uint64_t *written, const struct run *run, uint32_t shift)
{
	for (uint64_t page = run->offset >> shift;
	     page <= (run->offset + run->length - 1) >> shift; page++)
		written[page / 64] |= UINT64_C(1) << page % 64;
}

/* Zero a run, page by page: one that is zero already stays unallocated. */
static void clear(uint8_t *ram, const struct run *run, uint64_t page)
{
	for (uint64_t at = 0; at < run->length; at += page) {
		uint64_t part = run->length - at < page ? run->length - at : page;

		if (pyvmm_zero_prefix(ram + run->offset + at, part) != part)
			memset(ram + run->offset + at, 0, part);
	}
}

static int receive_frame(int fd, uint8_t *ram, uint64_t size, uint32_t shift,
			 const struct pyvmm_frame *frame, struct pyvmm_moved *moved,
			 uint64_t *written)
{
	struct run runs[PYVMM_FRAME_RUNS];
	struct iovec iov[PYVMM_FRAME_RUNS] = { { runs, frame->count * sizeof(*runs) } };
	uint64_t bytes = 0, page = UINT64_C(1) << shift;
	int error;

	if (!frame->count || frame->count > PYVMM_FRAME_RUNS)
		return PYVMM_STREAM_COUNT;
	if (frame->size < frame->count * sizeof(*runs))
		return PYVMM_STREAM_SIZE;
	error = receive_all(fd, iov, 1);
	if (error)
		return error;
	error = check(frame, runs, size, page);
	if (error)
		return error;
	for (uint32_t i = 0; i < frame->count; i++) {
		bytes += runs[i].length;
		note(written, &runs[i], shift);
		iov[i] = (struct iovec){ ram + runs[i].offset, runs[i].length };
		if (frame->kind == PYVMM_FRAME_ZERO)
			clear(ram, &runs[i], page);
	}
	if (frame->kind == PYVMM_FRAME_RAW)
		error = receive_all(fd, iov, frame->count);
	if (error)
		return error;
	moved->frames++;
	moved->wire += sizeof(*frame) + frame->size;
	*(frame->kind == PYVMM_FRAME_RAW ? &moved->raw : &moved->zero) += bytes;
	return 0;
}

/*
 * Receive pages into RAM until a frame of text comes, whose header is then *next. Marks the pages
 * in the bitmap `written`. Returns 0, a positive enum pyvmm_stream_error, for which *next is the
 * frame at fault, or -errno: ENODATA at the end of the stream, ECONNRESET in the middle of a frame.
 */
int pyvmm_receive_pages(int fd, uint8_t *ram, uint64_t size, uint32_t shift,
			struct pyvmm_frame *next, struct pyvmm_moved *moved, uint64_t *written)
{
	for (;;) {
		struct iovec header = { next, sizeof(*next) };
		int error = receive_all(fd, &header, 1);

		if (error || next->kind == PYVMM_FRAME_TEXT)
			return error;
		if (next->kind != PYVMM_FRAME_RAW && next->kind != PYVMM_FRAME_ZERO)
			return PYVMM_STREAM_KIND;
		error = receive_frame(fd, ram, size, shift, next, moved, written);
		if (error)
			return error == -ENODATA ? -ECONNRESET : error;
	}
}
