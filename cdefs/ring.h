/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Virtqueues over guest memory, split and packed (VIRTIO 1.2, 2.7 and 2.8), from the device's
 * side. Nothing here trusts the guest: each address and length that it writes is read once, checked
 * here, and used from the checked copy.
 *
 * One thread at a time may use a queue, and one a chain.
 */
#ifndef PYVMM_RING_H
#define PYVMM_RING_H

#include <stdint.h>
#include <sys/uio.h>

#include "dirty.h"
#include "observe.h"

/* Guest physical addresses [base, base + size) and their host address. */
struct pyvmm_range {
	uint64_t base;
	uint64_t size;
	uint8_t *host;
};

/* All of the guest's memory: disjoint ranges by ascending base. */
struct pyvmm_memory {
	uint32_t count;
	struct pyvmm_range *ranges;
	struct pyvmm_dirty *dirty; /* told what is written here, or NULL */
};

/* What a driver can do wrong with a ring. Negative, unlike other results of pop and configure. */
enum pyvmm_ring_error {
	PYVMM_RING_SIZE = -1,        /* an invalid queue size */
	PYVMM_RING_ALIGNMENT = -2,   /* a misaligned area (2.7, 2.8.10) */
	PYVMM_RING_ADDRESS = -3,     /* not guest memory */
	PYVMM_RING_INDEX = -4,       /* more made available than the ring holds */
	PYVMM_RING_DESCRIPTOR = -5,  /* a descriptor number beyond the table */
	PYVMM_RING_LOOP = -6,        /* a chain longer than its table */
	PYVMM_RING_EMPTY = -7,       /* an empty buffer */
	PYVMM_RING_ORDER = -8,       /* a device-readable buffer after a device-writable one */
	PYVMM_RING_INDIRECT = -9,    /* an indirect table that is not negotiated or not alone */
	PYVMM_RING_NESTED = -10,     /* an indirect table in an indirect table */
	PYVMM_RING_TABLE = -11,      /* an indirect table with no or with partial descriptors */
	PYVMM_RING_REUSED = -12,     /* made available again before the device has used it */
	PYVMM_RING_SEGMENTS = -13,   /* more buffers than a chain may have here */
	PYVMM_RING_LENGTH = -14,     /* more than 2^32 bytes in a chain (2.7.5) */
	PYVMM_RING_REQUEST = -15,    /* too small for the device's request */
};

/*
 * A chain that the driver made available: segments has the device-readable buffers first, then the
 * device-writable ones. addresses has the guest physical address of each.
 */
struct pyvmm_chain {
	uint32_t capacity;       /* of segments and addresses; set by the creator */
	struct iovec *segments;
	uint64_t *addresses;
	uint32_t readable;       /* segments */
	uint32_t writable;
	uint64_t readable_bytes;
	uint64_t writable_bytes;
	uint16_t id;             /* for push: the head's number (split), the buffer's id (packed) */
	struct pyvmm_dirty *dirty; /* of the queue's memory, set by pop */
};

struct pyvmm_queue {
	/* Set by the creator before configure. */
	struct pyvmm_memory *memory;
	uint16_t *taken;         /* by id: ring slots of a chain that the device has, or 0 */
	uint32_t taken_count;    /* size (split) or 65536 (packed: ids are any 16 bits) */
	uint16_t size;
	uint8_t packed;
	uint8_t event_idx;
	uint8_t indirect;

	uint8_t *descriptors;    /* the three areas (2.6), checked */
	uint8_t *driver;
	uint8_t *device;

	uint16_t next_avail;     /* split: free-running; packed: a slot, with a wrap counter */
	uint16_t next_used;
	uint8_t avail_wrap;
	uint8_t used_wrap;
	uint32_t in_flight;      /* slots (packed), chains (split) that the device has */
	uint16_t since;          /* slots (packed), chains (split) used since should_interrupt */
	uint8_t staged;          /* some used chains are not visible to the driver yet */
	uint16_t staged_slot;    /* packed: the slot of the first of them, and its flags to be */
	uint16_t staged_flags;
	int broken;              /* the first error; only configure clears it */
	struct pyvmm_queue_observer *observer; /* or NULL; set before the first pop */
};

/*
 * An interrupt: InterruptStatus (4.2.2) and the eventfd that raises it. Standing bits are always
 * set and cannot be acknowledged, so whoever uses a chain, even the kernel or another process,
 * need only signal the eventfd.
 */
struct pyvmm_interrupt {
	uint32_t status;
	uint32_t standing;
	int eventfd;
	uint64_t raised;         /* how often */
	struct pyvmm_trace_ring *ring; /* or NULL */
};

int pyvmm_queue_configure(struct pyvmm_queue *queue, uint64_t descriptors, uint64_t driver,
			  uint64_t device);
int pyvmm_queue_pop(struct pyvmm_queue *queue, struct pyvmm_chain *chain);
int pyvmm_queue_push(struct pyvmm_queue *queue, uint16_t id, uint32_t length);
int pyvmm_queue_stage(struct pyvmm_queue *queue, uint16_t id, uint32_t length);
void pyvmm_queue_publish(struct pyvmm_queue *queue);
int pyvmm_queue_has_available(struct pyvmm_queue *queue);

int pyvmm_queue_enable_notify(struct pyvmm_queue *queue);
void pyvmm_queue_disable_notify(struct pyvmm_queue *queue);
int pyvmm_queue_should_interrupt(struct pyvmm_queue *queue);

void pyvmm_chain_mark(const struct pyvmm_chain *chain);
uint64_t pyvmm_chain_read(const struct pyvmm_chain *chain, uint64_t offset, void *to,
			  uint64_t size);
uint64_t pyvmm_chain_write(struct pyvmm_chain *chain, uint64_t offset, const void *from,
			   uint64_t size);
int64_t pyvmm_chain_fill_random(struct pyvmm_chain *chain, uint64_t most);
int64_t pyvmm_chain_to_file(const struct pyvmm_chain *chain, uint64_t offset, int fd,
			    uint64_t most);
int64_t pyvmm_chain_from_file(const struct pyvmm_chain *chain, int fd, uint64_t most);

void pyvmm_interrupt_raise(struct pyvmm_interrupt *interrupt, uint32_t bits);
void pyvmm_interrupt_acknowledge(struct pyvmm_interrupt *interrupt, uint32_t bits);
uint32_t pyvmm_interrupt_status(struct pyvmm_interrupt *interrupt);
void pyvmm_interrupt_stand(struct pyvmm_interrupt *interrupt, uint32_t bits);

#endif
