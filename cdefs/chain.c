// SPDX-License-Identifier: Apache-2.0
/*
 * Access to the bytes of a chain, across its buffers, which were checked when it was popped.
 */
#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/uio.h>

#include "ring.h"

/* Copy up to size bytes of the device-readable part, from offset on. Returns how many. */
uint64_t pyvmm_chain_read(const struct pyvmm_chain *chain, uint64_t offset, void *to, uint64_t size)
{
	uint64_t done = 0;

	for (uint32_t i = 0; i < chain->readable && done < size; i++) {
		const struct iovec *segment = &chain->segments[i];
		uint64_t part;

		if (offset >= segment->iov_len) {
			offset -= segment->iov_len;
			continue;
		}
		part = segment->iov_len - offset < size - done ? segment->iov_len - offset
							       : size - done;
		memcpy((uint8_t *)to + done, (uint8_t *)segment->iov_base + offset, part);
		done += part;
		offset = 0;
	}
	return done;
}

/* Tell that the device has written its part of the chain, by other means than the functions here. */
void pyvmm_chain_mark(const struct pyvmm_chain *chain)
{
	for (uint32_t i = chain->readable; i < chain->readable + chain->writable; i++)
		pyvmm_dirty_mark(chain->dirty, chain->segments[i].iov_base,
				 chain->segments[i].iov_len);
}

/* Copy up to size bytes into the device-writable part, from offset on. Returns how many. */
uint64_t pyvmm_chain_write(struct pyvmm_chain *chain, uint64_t offset, const void *from,
			   uint64_t size)
{
	uint64_t done = 0;

	for (uint32_t i = 0; i < chain->writable && done < size; i++) {
		const struct iovec *segment = &chain->segments[chain->readable + i];
		uint64_t part;

		if (offset >= segment->iov_len) {
			offset -= segment->iov_len;
			continue;
		}
		part = segment->iov_len - offset < size - done ? segment->iov_len - offset
							       : size - done;
		memcpy((uint8_t *)segment->iov_base + offset, (const uint8_t *)from + done, part);
		pyvmm_dirty_mark(chain->dirty, (uint8_t *)segment->iov_base + offset, part);
		done += part;
		offset = 0;
	}
	return done;
}

/* Fill up to most bytes of the device-writable part at random. Returns how many, or -errno. */
int64_t pyvmm_chain_fill_random(struct pyvmm_chain *chain, uint64_t most)
{
	uint64_t done = 0;

	for (uint32_t i = 0; i < chain->writable && done < most; i++) {
		const struct iovec *segment = &chain->segments[chain->readable + i];
		uint64_t part = segment->iov_len < most - done ? segment->iov_len : most - done;

		for (uint64_t at = 0; at < part;) {
			ssize_t got = getrandom((uint8_t *)segment->iov_base + at, part - at, 0);

			if (got < 0 && errno != EINTR)
				return -errno;
			at += got < 0 ? 0 : (uint64_t)got;
		}
		pyvmm_dirty_mark(chain->dirty, segment->iov_base, part);
		done += part;
	}
	return (int64_t)done;
}

#define PIECES 64 /* buffers in one system call; the rest is left to the next call */

/* Select up to most bytes of `segments` from offset on. Returns the number of pieces. */
static int pieces(const struct iovec *segments, uint32_t count, uint64_t offset, uint64_t most,
		  struct iovec *to)
{
	int found = 0;

	for (uint32_t i = 0; i < count && most && found < PIECES; i++) {
		uint64_t part;

		if (offset >= segments[i].iov_len) {
			offset -= segments[i].iov_len;
			continue;
		}
		part = segments[i].iov_len - offset < most ? segments[i].iov_len - offset : most;
		to[found].iov_base = (uint8_t *)segments[i].iov_base + offset;
		to[found++].iov_len = part;
		most -= part;
		offset = 0;
	}
	return found;
}

/*
 * Write up to most bytes of the device-readable part, from offset on, to fd. Returns how many it
 * took, or -errno.
 */
int64_t pyvmm_chain_to_file(const struct pyvmm_chain *chain, uint64_t offset, int fd, uint64_t most)
{
	struct iovec part[PIECES];
	int count = pieces(chain->segments, chain->readable, offset, most, part);
	ssize_t done = count ? writev(fd, part, count) : 0;

	return done < 0 ? -errno : done;
}

/* Read up to most bytes from fd into the device-writable part. Returns how many, or -errno. */
int64_t pyvmm_chain_from_file(const struct pyvmm_chain *chain, int fd, uint64_t most)
{
	struct iovec part[PIECES];
	const struct iovec *writable = chain->segments + chain->readable;
	int count = pieces(writable, chain->writable, 0, most, part);
	ssize_t done = count ? readv(fd, part, count) : 0;

	if (done > 0)
		pyvmm_chain_mark(chain);
	return done < 0 ? -errno : done;
}
