// SPDX-License-Identifier: Apache-2.0
/* Track the chains that another process has: see inflight.h. */
#include <errno.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>

#include "inflight.h"

static uint16_t load(const uint16_t *index)
{
	return __atomic_load_n(index, __ATOMIC_ACQUIRE);
}

/* Start again if the process has no chain: both indices are equal at one moment. */
static void start_over(struct pyvmm_inflight *inflight, const uint16_t *avail,
		       const uint16_t *used)
{
	uint16_t before = load(avail), at = load(used);

	if (at != before || load(avail) != before)
		return;
	memset(inflight->count, 0, inflight->size);
	inflight->avail = inflight->used = at;
	inflight->exact = 1;
}

/* Follow the new entries of both rings. Returns 0 if some were missed or make no sense. */
static int follow(struct pyvmm_inflight *inflight)
{
	const struct vring_avail *avail = (void *)inflight->driver;
	const struct vring_used *used = (void *)inflight->device;
	uint16_t mask = inflight->size - 1, made, done;

	/* In this order, so that each chain found used was found available before. */
	done = load(&used->idx);
	made = load(&avail->idx);
	if ((uint16_t)(made - inflight->avail) > inflight->size ||
	    (uint16_t)(done - inflight->used) > inflight->size)
		return 0;
	for (uint16_t at = inflight->avail; at != made; at++) {
		uint16_t head = __atomic_load_n(&avail->ring[at & mask], __ATOMIC_RELAXED);

		if (head >= inflight->size || inflight->count[head] == UINT8_MAX)
			return 0; /* no driver makes such a ring */
		inflight->since[head] = ++inflight->seen;
		inflight->count[head]++;
	}
	/*
	 * Were entries overwritten while they were read? The driver may be writing the entry at
	 * its index; it reaches the entries read here only after as many chains were used.
	 */
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if ((uint16_t)(load(&avail->idx) - inflight->avail) >= inflight->size &&
	    (int16_t)(load(&used->idx) - inflight->avail) > 0)
		return 0;
	for (uint16_t at = inflight->used; at != done; at++) {
		uint32_t head = __atomic_load_n(&used->ring[at & mask].id, __ATOMIC_RELAXED);

		if (head >= inflight->size || !inflight->count[head])
			return 0;
		inflight->count[head]--;
	}
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if ((uint16_t)(load(&used->idx) - inflight->used) >= inflight->size &&
	    done != inflight->used)
		return 0;
	inflight->avail = made;
	inflight->used = done;
	return 1;
}

/* Look at the new entries of both rings. One thread at a time. */
void pyvmm_inflight_look(struct pyvmm_inflight *inflight)
{
	const struct vring_avail *avail = (void *)inflight->driver;
	const struct vring_used *used = (void *)inflight->device;

	if (inflight->exact && follow(inflight))
		return;
	inflight->exact = 0;
	start_over(inflight, &avail->idx, &used->idx);
}

/* Look, then pass on each doorbell, until `stop` is signalled. Later doorbells stay pending. */
void pyvmm_inflight_run(struct pyvmm_inflight *inflight)
{
	struct pollfd fds[] = {
		{ .fd = inflight->doorbell, .events = POLLIN },
		{ .fd = inflight->stop, .events = POLLIN },
	};
	eventfd_t rung;

	for (;;) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return;
		if (fds[1].revents)
			return;
		if (eventfd_read(inflight->doorbell, &rung))
			continue;
		pyvmm_inflight_look(inflight);
		eventfd_write(inflight->kick, 1);
	}
}

/*
 * The process is gone. Write the chains that it had and did not use into the available ring, in
 * their order, from the used ring's index on. There are as many entries as chains, drivers never
 * read them, and a driver overwrites them only when as many more chains were used. Also let the
 * driver notify again, if the process had suppressed that. heads has room for all. Returns the
 * index from which another process starts, or -1 if it is not known.
 */
int32_t pyvmm_inflight_requeue(struct pyvmm_inflight *inflight, uint16_t *heads)
{
	struct vring_avail *avail = (void *)inflight->driver;
	struct vring_used *used = (void *)inflight->device;
	uint16_t mask = inflight->size - 1, found = 0;

	pyvmm_inflight_look(inflight);
	if (!inflight->exact)
		return -1;
	for (uint16_t head = 0; head < inflight->size; head++) {
		uint16_t place = found;

		if (!inflight->count[head])
			continue;
		if (inflight->count[head] > 1)
			return -1;
		for (; place && inflight->since[heads[place - 1]] > inflight->since[head]; place--)
			heads[place] = heads[place - 1];
		heads[place] = head;
		found++;
	}
	if (found != (uint16_t)(inflight->avail - inflight->used))
		return -1;
	for (uint16_t index = 0; index < found; index++)
		__atomic_store_n(&avail->ring[(uint16_t)(inflight->used + index) & mask],
				 heads[index], __ATOMIC_RELEASE);
	__atomic_store_n(&used->flags, 0, __ATOMIC_SEQ_CST);
	return inflight->used;
}
