// SPDX-License-Identifier: Apache-2.0
/*
 * Notification suppression in both directions, with and without event indices (VIRTIO 1.2, 2.7.7,
 * 2.7.10 and 2.8.14), and interrupts.
 */
#include <linux/virtio_ring.h>
#include <sys/eventfd.h>

#include "ring.h"

#define WRAP (1u << VRING_PACKED_EVENT_F_WRAP_CTR)

/* --- Driver to device ------------------------------------------------------------------------ */

static void mark(struct pyvmm_queue *queue, const void *at, uint64_t length)
{
	pyvmm_dirty_mark(queue->memory->dirty, at, length);
}

/* used->avail_event, which follows the ring (2.7.10). */
static __virtio16 *avail_event(struct pyvmm_queue *queue)
{
	struct vring_used *used = (void *)queue->device;

	return (void *)&used->ring[queue->size];
}

/*
 * Ask to be notified of the next chain. Returns whether one is available already; it may have come
 * without a notification, so pop it.
 */
int pyvmm_queue_enable_notify(struct pyvmm_queue *queue)
{
	if (queue->broken)
		return 0;
	if (queue->packed) {
		struct vring_packed_desc_event *event = (void *)queue->device;
		uint16_t at = queue->next_avail | (queue->avail_wrap ? WRAP : 0);

		__atomic_store_n(&event->off_wrap, at, __ATOMIC_RELAXED);
		__atomic_store_n(&event->flags,
				 queue->event_idx ? VRING_PACKED_EVENT_FLAG_DESC
						  : VRING_PACKED_EVENT_FLAG_ENABLE,
				 __ATOMIC_RELEASE);
		mark(queue, event, sizeof(*event));
	} else if (queue->event_idx) {
		__atomic_store_n(avail_event(queue), queue->next_avail, __ATOMIC_RELAXED);
		mark(queue, avail_event(queue), sizeof(__virtio16));
	} else {
		struct vring_used *used = (void *)queue->device;

		__atomic_store_n(&used->flags, 0, __ATOMIC_RELAXED);
		mark(queue, used, sizeof(*used));
	}
	/* Look only after the driver can see this: it looks here after making a chain available. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return pyvmm_queue_has_available(queue);
}

/* Tell the driver that no notifications are needed. It may still send some. */
void pyvmm_queue_disable_notify(struct pyvmm_queue *queue)
{
	if (queue->broken)
		return;
	if (queue->packed) {
		struct vring_packed_desc_event *event = (void *)queue->device;

		__atomic_store_n(&event->flags, VRING_PACKED_EVENT_FLAG_DISABLE, __ATOMIC_RELAXED);
		mark(queue, event, sizeof(*event));
	} else if (!queue->event_idx) { /* else the event index stays behind, which suffices */
		struct vring_used *used = (void *)queue->device;

		__atomic_store_n(&used->flags, VRING_USED_F_NO_NOTIFY, __ATOMIC_RELAXED);
		mark(queue, used, sizeof(*used));
	}
}

/* --- Device to driver ------------------------------------------------------------------------ */

/* Return whether the `since` entries before next_used include `event` (all modulo 2^16). */
static int includes(uint16_t event, uint16_t next_used, uint16_t since)
{
	return (uint16_t)(next_used - event - 1) < since;
}

static int wants_packed(struct pyvmm_queue *queue, uint16_t since)
{
	struct vring_packed_desc_event *event = (void *)queue->driver;
	uint16_t flags = __atomic_load_n(&event->flags, __ATOMIC_ACQUIRE);
	uint16_t place = __atomic_load_n(&event->off_wrap, __ATOMIC_RELAXED);
	uint16_t slot = place & (WRAP - 1);

	flags &= 3; /* the others are reserved */
	if (flags != VRING_PACKED_EVENT_FLAG_DESC || !queue->event_idx)
		return flags != VRING_PACKED_EVENT_FLAG_DISABLE;
	if (!!(place & WRAP) != queue->used_wrap)
		slot -= queue->size; /* in the round before this one */
	return since >= queue->size || includes(slot, queue->next_used, since);
}

/* Return whether the driver wants an interrupt for the chains used since the last call. */
int pyvmm_queue_should_interrupt(struct pyvmm_queue *queue)
{
	uint16_t since = queue->since;
	struct vring_avail *avail = (void *)queue->driver;

	if (queue->broken || !since)
		return 0;
	queue->since = 0;
	/* The driver enables, then looks for used chains; the device uses them, then looks here. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (queue->packed)
		return wants_packed(queue, since);
	if (queue->event_idx) /* used_event follows the ring (2.7.7) */
		return includes(__atomic_load_n(&avail->ring[queue->size], __ATOMIC_RELAXED),
				queue->next_used, since);
	return !(__atomic_load_n(&avail->flags, __ATOMIC_RELAXED) & VRING_AVAIL_F_NO_INTERRUPT);
}

/* --- Interrupts ------------------------------------------------------------------------------ */

/* Set bits of the status, then signal: a reader of the status after the signal sees them. */
void pyvmm_interrupt_raise(struct pyvmm_interrupt *interrupt, uint32_t bits)
{
	__atomic_fetch_or(&interrupt->status, bits, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&interrupt->raised, 1, __ATOMIC_RELAXED);
	if (interrupt->ring)
		pyvmm_observe_interrupt(interrupt->ring, bits);
	/* Fails only at the count's limit (here as everywhere): then it is signalled already. */
	eventfd_write(interrupt->eventfd, 1);
}

void pyvmm_interrupt_acknowledge(struct pyvmm_interrupt *interrupt, uint32_t bits)
{
	__atomic_fetch_and(&interrupt->status, ~bits, __ATOMIC_SEQ_CST);
}

uint32_t pyvmm_interrupt_status(struct pyvmm_interrupt *interrupt)
{
	return __atomic_load_n(&interrupt->status, __ATOMIC_SEQ_CST) |
	       __atomic_load_n(&interrupt->standing, __ATOMIC_SEQ_CST);
}

/* Make exactly these bits stand. */
void pyvmm_interrupt_stand(struct pyvmm_interrupt *interrupt, uint32_t bits)
{
	__atomic_store_n(&interrupt->standing, bits, __ATOMIC_SEQ_CST);
}
