// SPDX-License-Identifier: Apache-2.0
/*
 * What is in a chain, across its buffers. They were checked when the chain was popped.
 */
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "ring.h"

/* Copy up to size bytes, from offset on, of what the device may read; returns how many. */
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

/* Copy up to size bytes to what the device may write, from offset on; returns how many. */
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
		done += part;
		offset = 0;
	}
	return done;
}

/* Fill up to most bytes of what the device may write with random ones; how many, or -errno. */
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
		done += part;
	}
	return (int64_t)done;
}
