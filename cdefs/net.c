// SPDX-License-Identifier: Apache-2.0
/*
 * Packets between virtqueues and a file: see net.h. One thread for each queue waits and copies
 * here, without Python; TAP reads and writes the guest's buffers directly.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "net.h"

#define BATCH 64 /* chains after which the driver gets an interrupt, if it wants one */
#define LENGTH 4 /* bytes before each of passt's frames: its length, big-endian */

/* Results of waiting and moving. Errors of rings are negative, of files positive. */
enum { STOPPED = 0, GONE_ON = INT_MAX };

/* --- Waiting --------------------------------------------------------------------------------- */

static int stopping(struct pyvmm_net_ring *ring)
{
	return __atomic_load_n(&ring->stopping, __ATOMIC_RELAXED);
}

/* Wait for the file (events), or for the doorbell if events is 0. pyvmm_net_stop ends it. */
static int wait_for(struct pyvmm_net_ring *ring, short events)
{
	struct pollfd fds[2] = {
		{ .fd = ring->stop, .events = POLLIN },
		{ .fd = events ? ring->file : ring->doorbell, .events = events ? events : POLLIN },
	};
	eventfd_t count;

	while (poll(fds, 2, -1) < 0)
		; /* EINTR */
	if (fds[0].revents)
		return STOPPED;
	if (!events)
		eventfd_read(ring->doorbell, &count);
	return GONE_ON;
}

static void interrupt(struct pyvmm_net_ring *ring)
{
	if (pyvmm_queue_should_interrupt(ring->queue))
		eventfd_write(ring->call, 1);
}

static void count(uint64_t *counter, uint64_t more)
{
	__atomic_store_n(counter, *counter + more, __ATOMIC_RELAXED);
}

/* --- Streams --------------------------------------------------------------------------------- */

/*
 * Move the rest of the frame to or from the socket. After a stop, `done` says how much was moved:
 * the socket continues in the middle of the frame.
 */
static int move(struct pyvmm_net_ring *ring, int sending)
{
	struct pyvmm_net_frame *frame = ring->frame;

	while (frame->done < frame->size) {
		uint8_t *at = frame->bytes + frame->done;
		size_t rest = frame->size - frame->done;
		ssize_t done = sending ? send(ring->file, at, rest, MSG_NOSIGNAL)
				       : recv(ring->file, at, rest, 0);

		if (done > 0) {
			frame->done += (uint32_t)done;
			continue;
		}
		if (!done)
			return EPIPE;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return errno;
		if (!sending)
			interrupt(ring);
		if (!wait_for(ring, sending ? POLLOUT : POLLIN))
			return STOPPED;
	}
	return GONE_ON;
}

static uint32_t frame_length(const struct pyvmm_net_frame *frame)
{
	const uint8_t *at = frame->bytes;

	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* --- From the driver ------------------------------------------------------------------------- */

static int send_frame(struct pyvmm_net_ring *ring, const struct pyvmm_chain *chain)
{
	struct pyvmm_net_frame *frame = ring->frame;
	uint32_t length = (uint32_t)(chain->readable_bytes - PYVMM_NET_HEADER);

	frame->bytes[0] = (uint8_t)(length >> 24);
	frame->bytes[1] = (uint8_t)(length >> 16);
	frame->bytes[2] = (uint8_t)(length >> 8);
	frame->bytes[3] = (uint8_t)length;
	pyvmm_chain_read(chain, PYVMM_NET_HEADER, frame->bytes + LENGTH, length);
	frame->done = 0;
	frame->size = LENGTH + length;
	return move(ring, 1);
}

static int write_tap(struct pyvmm_net_ring *ring, const struct pyvmm_chain *chain)
{
	ssize_t done;

	do
		done = writev(ring->file, chain->segments, (int)chain->readable);
	while (done < 0 && errno == EINTR);
	/* A bad frame is the driver's business; a link that is down takes none: drop it. */
	count(done < 0 ? &ring->dropped : &ring->packets, 1);
	if (done > 0)
		count(&ring->bytes, (uint64_t)done - PYVMM_NET_HEADER);
	return GONE_ON;
}

static int transmit(struct pyvmm_net_ring *ring, const struct pyvmm_chain *chain)
{
	int result;

	if (chain->readable_bytes < PYVMM_NET_HEADER)
		return PYVMM_RING_REQUEST;
	if (!ring->frame)
		return write_tap(ring, chain);
	if (chain->readable_bytes > PYVMM_NET_MOST || chain->readable_bytes == PYVMM_NET_HEADER) {
		count(&ring->dropped, 1);
		return GONE_ON;
	}
	result = send_frame(ring, chain);
	count(&ring->packets, 1);
	count(&ring->bytes, chain->readable_bytes - PYVMM_NET_HEADER);
	return result;
}

/* Transmit all available chains. */
static int drain(struct pyvmm_net_ring *ring)
{
	struct pyvmm_chain *chain = ring->chains;
	int result, done = 0;

	do {
		pyvmm_queue_disable_notify(ring->queue);
		while ((result = pyvmm_queue_pop(ring->queue, chain)) > 0) {
			uint16_t id = chain->id;

			result = transmit(ring, chain);
			if (result < 0)
				return result;
			pyvmm_queue_push(ring->queue, id, 0);
			if (++done % BATCH == 0)
				interrupt(ring);
			if (result != GONE_ON || stopping(ring))
				return result == GONE_ON ? STOPPED : result;
		}
		if (result < 0)
			return result;
		interrupt(ring);
	} while (pyvmm_queue_enable_notify(ring->queue));
	return GONE_ON;
}

/*
 * Serve a transmit queue until pyvmm_net_stop. Returns 0 then, or at once the error of the ring
 * (negative, enum pyvmm_ring_error) or of the file (errno).
 */
int pyvmm_net_transmit(struct pyvmm_net_ring *ring)
{
	int result = ring->frame ? move(ring, 1) : GONE_ON;

	while (result == GONE_ON) {
		result = wait_for(ring, 0);
		if (result == GONE_ON)
			result = drain(ring);
	}
	return result;
}

/* --- To the driver --------------------------------------------------------------------------- */

static struct pyvmm_chain *at_hand(struct pyvmm_net_ring *ring, uint32_t index)
{
	return &ring->chains[(ring->first + index) % PYVMM_NET_WINDOW];
}

/* Pop buffers until the largest packet fits; without MRG_RXBUF, one. */
static int fill(struct pyvmm_net_ring *ring)
{
	uint32_t most = ring->mergeable ? PYVMM_NET_WINDOW : 1;

	while (ring->count < most && ring->room < PYVMM_NET_MOST) {
		struct pyvmm_chain *chain = at_hand(ring, ring->count);
		int result = pyvmm_queue_pop(ring->queue, chain);

		if (result < 0)
			return result;
		if (!result)
			break;
		if (chain->writable_bytes < PYVMM_NET_HEADER) /* 5.1.6.3.1 */
			return PYVMM_RING_REQUEST;
		ring->room += chain->writable_bytes;
		ring->count++;
	}
	return GONE_ON;
}

/* Pop more buffers; wait if there are none. */
static int demand(struct pyvmm_net_ring *ring)
{
	uint32_t before = ring->count;
	int result = fill(ring);

	while (result == GONE_ON && ring->count == before) {
		interrupt(ring);
		if (!pyvmm_queue_enable_notify(ring->queue))
			result = wait_for(ring, 0);
		pyvmm_queue_disable_notify(ring->queue);
		if (result == GONE_ON)
			result = fill(ring);
	}
	return result;
}

/* Copy size bytes to the buffers at hand, from offset on. */
static void copy(struct pyvmm_net_ring *ring, uint64_t offset, const uint8_t *from, uint64_t size)
{
	for (uint32_t i = 0; size; i++) {
		struct pyvmm_chain *chain = at_hand(ring, i);
		uint64_t done;

		if (offset >= chain->writable_bytes) {
			offset -= chain->writable_bytes;
			continue;
		}
		done = pyvmm_chain_write(chain, offset, from, size);
		from += done;
		size -= done;
		offset = 0;
	}
}

/*
 * Use the first buffers, which hold a packet. All at once: a driver that sees the first does not
 * wait for the second.
 */
static void deliver(struct pyvmm_net_ring *ring, uint64_t size)
{
	uint16_t buffers = 0;

	count(&ring->packets, 1);
	count(&ring->bytes, size - PYVMM_NET_HEADER);
	for (uint64_t left = size; left; buffers++) {
		uint64_t room = at_hand(ring, buffers)->writable_bytes;

		left -= room < left ? room : left;
	}
	/* num_buffers, the header's last field. */
	pyvmm_chain_write(at_hand(ring, 0), PYVMM_NET_HEADER - 2, &buffers, 2);
	while (buffers--) {
		struct pyvmm_chain *chain = at_hand(ring, 0);
		uint64_t part = chain->writable_bytes < size ? chain->writable_bytes : size;

		pyvmm_chain_mark(chain);
		pyvmm_queue_stage(ring->queue, chain->id, (uint32_t)part);
		size -= part;
		ring->room -= chain->writable_bytes;
		ring->first = (ring->first + 1) % PYVMM_NET_WINDOW;
		ring->count--;
	}
	pyvmm_queue_publish(ring->queue);
}

/* Wait for room for size bytes. Returns GONE_ON when there is room, or never will be. */
static int make_room(struct pyvmm_net_ring *ring, uint64_t size)
{
	int result = GONE_ON;

	while (result == GONE_ON && ring->room < size && ring->mergeable &&
	       ring->count < PYVMM_NET_WINDOW)
		result = demand(ring);
	return result;
}

/* Build the vector of the buffers at hand, followed by `rest` for bytes beyond their room. */
static int vector(struct pyvmm_net_ring *ring, struct iovec *iov, uint8_t *rest)
{
	int used = 0;

	for (uint32_t i = 0; i < ring->count; i++) {
		struct pyvmm_chain *chain = at_hand(ring, i);

		for (uint32_t j = 0; j < chain->writable; j++) {
			if (used == IOV_MAX - 1) /* a packet that needs more is dropped */
				goto full;
			iov[used++] = chain->segments[chain->readable + j];
		}
	}
full:
	iov[used].iov_base = rest;
	iov[used].iov_len = PYVMM_NET_MOST;
	return used + 1;
}

static int read_tap(struct pyvmm_net_ring *ring)
{
	struct iovec iov[IOV_MAX];
	uint8_t rest[PYVMM_NET_MOST];
	int parts = vector(ring, iov, rest), result;
	uint64_t direct = 0;
	ssize_t size = readv(ring->file, iov, parts);

	if (size < 0) {
		if (errno == EINTR)
			return GONE_ON;
		interrupt(ring);
		if (errno == EAGAIN)
			return wait_for(ring, POLLIN);
		if (errno == EBADFD) /* a detached queue, or a deleted interface */
			return wait_for(ring, 0);
		return errno;
	}
	for (int i = 0; i < parts - 1; i++)
		direct += iov[i].iov_len;
	if (size <= PYVMM_NET_HEADER)
		return GONE_ON;
	if ((uint64_t)size > direct) {
		result = make_room(ring, (uint64_t)size);
		if (result != GONE_ON)
			return result;
		if (ring->room < (uint64_t)size || parts == IOV_MAX) {
			count(&ring->dropped, 1);
			return GONE_ON;
		}
		copy(ring, direct, rest, (uint64_t)size - direct);
	}
	deliver(ring, (uint64_t)size);
	return GONE_ON;
}

static int read_frame(struct pyvmm_net_ring *ring)
{
	static const uint8_t header[PYVMM_NET_HEADER];
	struct pyvmm_net_frame *frame = ring->frame;
	uint64_t size;
	int result;

	if (frame->size <= LENGTH) {
		frame->size = LENGTH;
		result = move(ring, 0);
		if (result != GONE_ON)
			return result;
		if (!frame_length(frame) || frame_length(frame) > PYVMM_NET_MOST - PYVMM_NET_HEADER)
			return EPROTO;
		frame->size += frame_length(frame);
	}
	result = move(ring, 0);
	if (result != GONE_ON)
		return result;
	size = frame->size - LENGTH + PYVMM_NET_HEADER;
	result = make_room(ring, size);
	if (result != GONE_ON)
		return result;
	frame->done = frame->size = 0;
	if (ring->room < size) {
		count(&ring->dropped, 1);
		return GONE_ON;
	}
	copy(ring, 0, header, sizeof(header));
	copy(ring, sizeof(header), frame->bytes + LENGTH, size - sizeof(header));
	deliver(ring, size);
	return GONE_ON;
}

/* Serve a receive queue until pyvmm_net_stop. Returns what pyvmm_net_transmit does. */
int pyvmm_net_receive(struct pyvmm_net_ring *ring)
{
	int result = GONE_ON, done = 0;

	pyvmm_queue_disable_notify(ring->queue);
	while (result == GONE_ON && !stopping(ring)) {
		result = fill(ring);
		if (result == GONE_ON && !ring->count)
			result = demand(ring);
		if (result == GONE_ON)
			result = ring->frame ? read_frame(ring) : read_tap(ring);
		if (++done % BATCH == 0)
			interrupt(ring);
	}
	return result == GONE_ON ? STOPPED : result;
}

/* Make the serving function return soon. From any thread. */
void pyvmm_net_stop(struct pyvmm_net_ring *ring)
{
	__atomic_store_n(&ring->stopping, 1, __ATOMIC_RELAXED);
	eventfd_write(ring->stop, 1);
}
