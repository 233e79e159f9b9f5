// SPDX-License-Identifier: Apache-2.0
/*
 * Virtqueues: chains from the driver and back, see ring.h. Everything here runs without Python's
 * lock and allocates nothing.
 *
 *     split                                      packed
 *       descriptors   table, linked by next        descriptors   ring, each made available and
 *       driver        avail ring --> pop                         used in place by two flags
 *       device        used ring  <-- push          driver        when to interrupt
 *                                                  device        when to notify
 */
#include <errno.h>
#include <linux/virtio_ring.h>
#include <stddef.h>
#include <string.h>

#include "ring.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian (1.4)");
_Static_assert(sizeof(struct vring_desc) == 16 && sizeof(struct vring_packed_desc) == 16,
	       "a descriptor has 16 bytes in either format");

#define DESCRIPTOR_SIZE 16
#define MAX_SIZE 32768          /* descriptors in a queue (2.7, 2.8) */
#define MAX_BYTES (UINT64_C(1) << 32)
#define AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define USED (1u << VRING_PACKED_DESC_F_USED)

/* --- Guest memory ---------------------------------------------------------------------------- */

static const struct pyvmm_range *find(const struct pyvmm_memory *memory, uint64_t address)
{
	uint32_t low = 0, high = memory->count;

	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (memory->ranges[middle].base <= address)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low || address - memory->ranges[low - 1].base >= memory->ranges[low - 1].size)
		return NULL;
	return &memory->ranges[low - 1];
}

/* Return the host address of [address, address + length), or NULL if no range contains it. */
static uint8_t *translate(const struct pyvmm_memory *memory, uint64_t address, uint64_t length)
{
	const struct pyvmm_range *range = find(memory, address);

	if (!range || length > range->size - (address - range->base))
		return NULL;
	return range->host + (address - range->base);
}

/*
 * Read one of the guest's descriptors, once. The guest may change it meanwhile, so the compiler
 * must not read again what has been checked.
 */
static void load(void *to, const uint8_t *table, uint32_t index)
{
	memcpy(to, table + (size_t)index * DESCRIPTOR_SIZE, DESCRIPTOR_SIZE);
	__asm__ volatile("" : : "r"(to) : "memory");
}

/* --- Chains ---------------------------------------------------------------------------------- */

static void start(struct pyvmm_chain *chain)
{
	chain->readable = chain->writable = 0;
	chain->readable_bytes = chain->writable_bytes = 0;
}

/* Append the buffer of one descriptor. All buffers are checked here. */
static int add(struct pyvmm_chain *chain, const struct pyvmm_memory *memory, uint64_t address,
	       uint32_t length, int writable)
{
	if (!length)
		return PYVMM_RING_EMPTY;
	if (!writable && chain->writable)
		return PYVMM_RING_ORDER;
	if (address + length < address)
		return PYVMM_RING_ADDRESS;
	if (chain->readable_bytes + chain->writable_bytes + length > MAX_BYTES)
		return PYVMM_RING_LENGTH;
	*(writable ? &chain->writable_bytes : &chain->readable_bytes) += length;
	/* Contiguous guest memory may span several ranges of the host's. */
	while (length) {
		const struct pyvmm_range *range = find(memory, address);
		uint32_t count = chain->readable + chain->writable;
		uint64_t offset, part;

		if (!range)
			return PYVMM_RING_ADDRESS;
		if (count == chain->capacity)
			return PYVMM_RING_SEGMENTS;
		offset = address - range->base;
		part = range->size - offset < length ? range->size - offset : length;
		chain->segments[count].iov_base = range->host + offset;
		chain->segments[count].iov_len = part;
		chain->addresses[count] = address;
		*(writable ? &chain->writable : &chain->readable) += 1;
		address += part;
		length -= (uint32_t)part;
	}
	return 0;
}

/* --- Split (2.7) ----------------------------------------------------------------------------- */

/*
 * Follow the chain from descriptor `at`. An indirect table may be longer than the queue: 2.7.5.3.1
 * forbids it, but drivers rely on it, and it needs no more than room for the segments.
 */
static int walk_split(struct pyvmm_queue *queue, struct pyvmm_chain *chain, uint32_t at)
{
	const uint8_t *table = queue->descriptors;
	uint32_t entries = queue->size, seen = 0;
	int indirect = 0, error;

	for (;;) {
		struct vring_desc entry;

		if (seen++ == entries)
			return PYVMM_RING_LOOP;
		load(&entry, table, at);
		if (entry.flags & VRING_DESC_F_INDIRECT) {
			if (indirect)
				return PYVMM_RING_NESTED;
			if (!queue->indirect || entry.flags & VRING_DESC_F_NEXT)
				return PYVMM_RING_INDIRECT;
			if (!entry.len || entry.len % DESCRIPTOR_SIZE)
				return PYVMM_RING_TABLE;
			table = translate(queue->memory, entry.addr, entry.len);
			if (!table)
				return PYVMM_RING_ADDRESS;
			entries = entry.len / DESCRIPTOR_SIZE;
			seen = at = 0;
			indirect = 1;
			continue;
		}
		error = add(chain, queue->memory, entry.addr, entry.len,
			    entry.flags & VRING_DESC_F_WRITE);
		if (error || !(entry.flags & VRING_DESC_F_NEXT))
			return error;
		at = entry.next;
		if (at >= entries)
			return PYVMM_RING_DESCRIPTOR;
	}
}

static uint16_t avail_index(struct pyvmm_queue *queue)
{
	struct vring_avail *avail = (void *)queue->driver;

	return __atomic_load_n(&avail->idx, __ATOMIC_ACQUIRE);
}

static int pop_split(struct pyvmm_queue *queue, struct pyvmm_chain *chain)
{
	struct vring_avail *avail = (void *)queue->driver;
	uint16_t waiting = (uint16_t)(avail_index(queue) - queue->next_avail);
	uint16_t head;
	int error;

	if (!waiting)
		return 0;
	if (waiting + queue->in_flight > queue->size)
		return PYVMM_RING_INDEX;
	head = __atomic_load_n(&avail->ring[queue->next_avail & (queue->size - 1)],
			       __ATOMIC_RELAXED);
	if (head >= queue->size)
		return PYVMM_RING_DESCRIPTOR;
	if (queue->taken[head])
		return PYVMM_RING_REUSED;
	error = walk_split(queue, chain, head);
	if (error)
		return error;
	queue->taken[head] = 1;
	queue->in_flight++;
	queue->next_avail++;
	chain->id = head;
	return 1;
}

static void stage_split(struct pyvmm_queue *queue, uint16_t id, uint32_t length)
{
	struct vring_used *used = (void *)queue->device;
	struct vring_used_elem *element = &used->ring[queue->next_used & (queue->size - 1)];

	__atomic_store_n(&element->id, id, __ATOMIC_RELAXED);
	__atomic_store_n(&element->len, length, __ATOMIC_RELAXED);
	queue->next_used++;
	pyvmm_dirty_mark(queue->memory->dirty, element, sizeof(*element));
}

/* --- Packed (2.8) ---------------------------------------------------------------------------- */

/* The descriptors of an indirect table are one chain, in table order (2.8.8). */
static int walk_table(struct pyvmm_queue *queue, struct pyvmm_chain *chain,
		      const struct vring_packed_desc *outer)
{
	const uint8_t *table;
	int error = 0;

	if (!outer->len || outer->len % DESCRIPTOR_SIZE)
		return PYVMM_RING_TABLE;
	table = translate(queue->memory, outer->addr, outer->len);
	if (!table)
		return PYVMM_RING_ADDRESS;
	for (uint32_t at = 0; at < outer->len / DESCRIPTOR_SIZE && !error; at++) {
		struct vring_packed_desc entry;

		load(&entry, table, at);
		if (entry.flags & VRING_DESC_F_INDIRECT)
			return PYVMM_RING_NESTED;
		error = add(chain, queue->memory, entry.addr, entry.len,
			    entry.flags & VRING_DESC_F_WRITE);
	}
	return error;
}

static int is_available(struct pyvmm_queue *queue)
{
	struct vring_packed_desc *ring = (void *)queue->descriptors;
	uint16_t flags = __atomic_load_n(&ring[queue->next_avail].flags, __ATOMIC_ACQUIRE);

	return !!(flags & AVAIL) == queue->avail_wrap && !!(flags & USED) != queue->avail_wrap;
}

/* Returns the number of ring slots of the chain, or an enum pyvmm_ring_error. */
static int walk_packed(struct pyvmm_queue *queue, struct pyvmm_chain *chain)
{
	uint32_t at = queue->next_avail, slots = 0;

	for (;;) {
		struct vring_packed_desc entry;
		int error;

		if (slots == queue->size)
			return PYVMM_RING_LOOP;
		load(&entry, queue->descriptors, at);
		slots++;
		at = at + 1 == queue->size ? 0 : at + 1;
		if (entry.flags & VRING_DESC_F_INDIRECT) {
			if (!queue->indirect || slots > 1 || entry.flags & VRING_DESC_F_NEXT)
				return PYVMM_RING_INDIRECT;
			error = walk_table(queue, chain, &entry);
		} else {
			error = add(chain, queue->memory, entry.addr, entry.len,
				    entry.flags & VRING_DESC_F_WRITE);
		}
		if (error)
			return error;
		if (!(entry.flags & VRING_DESC_F_NEXT)) {
			chain->id = entry.id; /* the last one's counts (2.8.5) */
			return (int)slots;
		}
	}
}

/* Advance by `slots` in the ring. */
static void advance(struct pyvmm_queue *queue, uint16_t *at, uint8_t *wrap, uint32_t slots)
{
	uint32_t next = *at + slots;

	if (next >= queue->size) {
		next -= queue->size;
		*wrap ^= 1;
	}
	*at = (uint16_t)next;
}

static int pop_packed(struct pyvmm_queue *queue, struct pyvmm_chain *chain)
{
	int slots;

	if (!is_available(queue))
		return 0;
	slots = walk_packed(queue, chain);
	if (slots < 0)
		return slots;
	if (queue->in_flight + (uint32_t)slots > queue->size)
		return PYVMM_RING_INDEX;
	if (queue->taken[chain->id])
		return PYVMM_RING_REUSED;
	queue->taken[chain->id] = (uint16_t)slots;
	queue->in_flight += (uint32_t)slots;
	advance(queue, &queue->next_avail, &queue->avail_wrap, (uint32_t)slots);
	return 1;
}

/* The driver looks at the slots in order: it sees none before the flags of the first. */
static void stage_packed(struct pyvmm_queue *queue, uint16_t id, uint32_t length)
{
	struct vring_packed_desc *ring = (void *)queue->descriptors;
	struct vring_packed_desc *entry = &ring[queue->next_used];
	uint16_t flags = queue->used_wrap ? AVAIL | USED : 0;

	flags |= length ? VRING_DESC_F_WRITE : 0;
	__atomic_store_n(&entry->id, id, __ATOMIC_RELAXED);
	__atomic_store_n(&entry->len, length, __ATOMIC_RELAXED);
	if (queue->staged) {
		__atomic_store_n(&entry->flags, flags, __ATOMIC_RELEASE);
	} else {
		queue->staged_slot = queue->next_used;
		queue->staged_flags = flags;
	}
	pyvmm_dirty_mark(queue->memory->dirty, entry, sizeof(*entry));
	advance(queue, &queue->next_used, &queue->used_wrap, queue->taken[id]);
}

/* --- Either ---------------------------------------------------------------------------------- */

static int area(struct pyvmm_queue *queue, uint64_t address, uint64_t size, uint64_t alignment,
		uint8_t **host)
{
	*host = translate(queue->memory, address, size);
	if (!*host)
		return PYVMM_RING_ADDRESS;
	/* Aligned on the host, too: it is accessed by its own types. */
	return (address | (uintptr_t)*host) % alignment ? PYVMM_RING_ALIGNMENT : 0;
}

static int areas(struct pyvmm_queue *queue, uint64_t descriptors, uint64_t driver, uint64_t device)
{
	uint64_t size = queue->size;
	int error;

	if (!size || size > MAX_SIZE || (!queue->packed && size & (size - 1)))
		return PYVMM_RING_SIZE;
	error = area(queue, descriptors, size * DESCRIPTOR_SIZE, 16, &queue->descriptors);
	if (error)
		return error;
	if (queue->packed) {
		error = area(queue, driver, 4, 4, &queue->driver);
		return error ? error : area(queue, device, 4, 4, &queue->device);
	}
	error = area(queue, driver, 6 + 2 * size, 2, &queue->driver);
	return error ? error : area(queue, device, 6 + 8 * size, 4, &queue->device);
}

/* Return whether a chain waits to be popped. It is not checked yet. */
int pyvmm_queue_has_available(struct pyvmm_queue *queue)
{
	return queue->packed ? is_available(queue) : avail_index(queue) != queue->next_avail;
}

/* Start with a ring at these guest physical addresses. Returns 0 or an enum pyvmm_ring_error. */
int pyvmm_queue_configure(struct pyvmm_queue *queue, uint64_t descriptors, uint64_t driver,
			  uint64_t device)
{
	queue->broken = areas(queue, descriptors, driver, device);
	memset(queue->taken, 0, queue->taken_count * sizeof(*queue->taken));
	queue->next_avail = queue->next_used = 0;
	queue->avail_wrap = queue->used_wrap = 1; /* 2.8.1 */
	queue->in_flight = queue->since = queue->staged = 0;
	return queue->broken;
}

/* Pop the next chain. Returns 1, 0 if there is none, or an enum pyvmm_ring_error. */
int pyvmm_queue_pop(struct pyvmm_queue *queue, struct pyvmm_chain *chain)
{
	int result;

	if (queue->broken)
		return queue->broken;
	start(chain);
	chain->dirty = queue->memory->dirty;
	result = queue->packed ? pop_packed(queue, chain) : pop_split(queue, chain);
	if (result < 0)
		queue->broken = result;
	if (result > 0 && queue->observer)
		pyvmm_observe_pop(queue->observer, chain->id, chain->readable_bytes);
	return result;
}

/*
 * Use a chain of which the device wrote `length` bytes. The driver sees all staged chains after
 * publish. Returns 0, or -EINVAL if the device does not have such a chain: a bug of the caller,
 * or a chain from before configure.
 */
int pyvmm_queue_stage(struct pyvmm_queue *queue, uint16_t id, uint32_t length)
{
	uint32_t slots;

	if (queue->broken || id >= queue->taken_count || !queue->taken[id])
		return -EINVAL;
	slots = queue->taken[id];
	if (queue->observer)
		pyvmm_observe_use(queue->observer, id, length);
	if (queue->packed)
		stage_packed(queue, id, length);
	else
		stage_split(queue, id, length);
	queue->staged = 1;
	queue->taken[id] = 0;
	queue->in_flight -= slots;
	queue->since = queue->since + slots > UINT16_MAX ? UINT16_MAX : queue->since + slots;
	return 0;
}

/* Show all staged chains to the driver at once. */
void pyvmm_queue_publish(struct pyvmm_queue *queue)
{
	struct vring_packed_desc *ring = (void *)queue->descriptors;
	struct vring_used *used = (void *)queue->device;

	if (queue->broken || !queue->staged)
		return;
	queue->staged = 0;
	if (queue->packed) {
		__atomic_store_n(&ring[queue->staged_slot].flags, queue->staged_flags,
				 __ATOMIC_RELEASE);
		pyvmm_dirty_mark(queue->memory->dirty, &ring[queue->staged_slot], sizeof(*ring));
	} else {
		__atomic_store_n(&used->idx, queue->next_used, __ATOMIC_RELEASE);
		pyvmm_dirty_mark(queue->memory->dirty, used, sizeof(*used));
	}
}

/* Return one chain to the driver: stage, then publish. */
int pyvmm_queue_push(struct pyvmm_queue *queue, uint16_t id, uint32_t length)
{
	int result = pyvmm_queue_stage(queue, id, length);

	pyvmm_queue_publish(queue);
	return result;
}
