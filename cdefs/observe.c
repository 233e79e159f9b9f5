// SPDX-License-Identifier: Apache-2.0
/*
 * Count and record exits, chains and interrupts, see observe.h. No function here makes a system
 * call on a usual path: the clock is the vDSO's, and a ring's eventfd is written once per half.
 */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "observe.h"

#define PROBES 8 /* entries of the hash table that a block may be in */
#define NANOSECONDS 1000000000ull

/* Add to a counter that one thread at a time writes and others read: no bus lock is needed. */
static void add(uint64_t *counter, uint64_t amount)
{
	uint64_t value = __atomic_load_n(counter, __ATOMIC_RELAXED);

	__atomic_store_n(counter, value + amount, __ATOMIC_RELAXED);
}

uint64_t pyvmm_observe_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NANOSECONDS + (uint64_t)now.tv_nsec;
}

/* --- Rings of records ------------------------------------------------------------------------ */

/* Put one record, if there is room. One thread at a time. Returns 0, or -EAGAIN: it is lost. */
int pyvmm_trace_put(struct pyvmm_trace_ring *ring, const struct pyvmm_record *record)
{
	uint32_t head = ring->head;
	uint32_t used = head - __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);

	if (used >= ring->size) {
		add(&ring->lost, 1);
		return -EAGAIN;
	}
	ring->records[head & (ring->size - 1)] = *record;
	__atomic_store_n(&ring->head, head + 1, __ATOMIC_RELEASE);
	if (used + 1 == ring->size / 2)
		eventfd_write(ring->wake, 1);
	return 0;
}

uint64_t pyvmm_trace_lost(struct pyvmm_trace_ring *ring)
{
	return __atomic_load_n(&ring->lost, __ATOMIC_RELAXED);
}

/* --- Exits ----------------------------------------------------------------------------------- */

static struct pyvmm_block *block(struct pyvmm_exit_observer *observer, uint64_t address)
{
	uint64_t number = (address >> PYVMM_BLOCK_SHIFT) + 1;
	uint64_t hash = number * UINT64_C(0x9E3779B97F4A7C15) >> 32; /* 2^64 / the golden ratio */

	for (uint32_t probe = 0; probe < PROBES; probe++) {
		struct pyvmm_block *entry = &observer->blocks[(hash + probe) % PYVMM_BLOCKS];

		if (entry->number == number)
			return entry;
		if (!entry->number) {
			__atomic_store_n(&entry->number, number, __ATOMIC_RELEASE);
			return entry;
		}
	}
	return &observer->elsewhere;
}

/* Return the bytes of the MMIO access in kvm_run, of which KVM gives up to eight. */
static uint64_t moved(const struct kvm_run *run)
{
	uint64_t value = 0;

	memcpy(&value, run->mmio.data,
	       run->mmio.len < sizeof(value) ? run->mmio.len : sizeof(value));
	return value;
}

/* KVM_RUN is about to enter the guest, or its thread ends: the last exit is over. */
void pyvmm_observe_entry(struct pyvmm_exit_observer *observer, const struct kvm_run *run)
{
	struct pyvmm_record *last = &observer->pending;

	if (!observer->is_pending)
		return;
	observer->is_pending = 0;
	if (!last->failed && last->reason == KVM_EXIT_MMIO && !last->store)
		last->value = moved(run); /* it had no value before it was answered */
	last->end = pyvmm_observe_now();
	pyvmm_trace_put(observer->ring, last);
}

/* KVM_RUN has returned `result`, 0 or -errno, and an exit in kvm_run. */
void pyvmm_observe_exit(struct pyvmm_exit_observer *observer, const struct kvm_run *run,
			int result)
{
	struct pyvmm_record *last = &observer->pending;
	uint32_t reason = run->exit_reason;
	int mmio = !result && reason == KVM_EXIT_MMIO;

	if (result) {
		add(result == -EINTR ? &observer->kicks : &observer->failures, 1);
	} else {
		add(&observer->reasons[reason < PYVMM_EXIT_REASONS ? reason
								   : PYVMM_EXIT_REASONS - 1], 1);
	}
	if (mmio) {
		struct pyvmm_block *entry = block(observer, run->mmio.phys_addr);

		add(run->mmio.is_write ? &entry->stores : &entry->loads, 1);
	}
	if (!observer->ring)
		return;
	memset(last, 0, sizeof(*last));
	last->kind = PYVMM_RECORD_EXIT;
	last->failed = result != 0;
	last->reason = (uint16_t)(result ? -result : (int)reason);
	if (mmio) {
		last->address = run->mmio.phys_addr;
		last->size = run->mmio.len;
		last->store = run->mmio.is_write != 0;
		last->value = last->store ? moved(run) : 0;
	}
	last->begin = pyvmm_observe_now();
	observer->is_pending = 1;
}

/* The run loop has answered the MMIO exit in kvm_run. */
void pyvmm_observe_answer(struct pyvmm_exit_observer *observer, const struct kvm_run *run)
{
	add(&block(observer, run->mmio.phys_addr)->answered, 1);
	observer->pending.answered = 1;
}

/* --- Queues ---------------------------------------------------------------------------------- */

/* Time chains from the next one popped on. `flights` has `count` entries, all zero. */
void pyvmm_observe_time(struct pyvmm_queue_observer *observer, struct pyvmm_flight *flights,
			uint32_t count)
{
	observer->flights = flights;
	__atomic_store_n(&observer->flight_count, count, __ATOMIC_RELEASE);
}

/* Return where to remember when chain `id` came; NULL: chains of this queue are not timed. */
static struct pyvmm_flight *flight(struct pyvmm_queue_observer *observer, uint16_t id)
{
	if (id >= __atomic_load_n(&observer->flight_count, __ATOMIC_ACQUIRE))
		return NULL;
	return &observer->flights[id];
}

/* The device has popped chain `id`. */
void pyvmm_observe_pop(struct pyvmm_queue_observer *observer, uint16_t id, uint64_t readable)
{
	struct pyvmm_flight *came = flight(observer, id);

	add(&observer->readable, readable);
	if (came)
		*came = (struct pyvmm_flight){ .begin = pyvmm_observe_now(), .readable = readable };
}

/* The device uses chain `id`, of which it wrote `length` bytes. */
void pyvmm_observe_use(struct pyvmm_queue_observer *observer, uint16_t id, uint32_t length)
{
	struct pyvmm_record record = { .kind = PYVMM_RECORD_CHAIN, .address = id, .size = length };
	struct pyvmm_flight *came = flight(observer, id);

	add(&observer->chains, 1);
	add(&observer->written, length);
	if (!came)
		return;
	record.begin = record.end = pyvmm_observe_now();
	if (came->begin) {
		record.begin = came->begin;
		record.value = came->readable;
		came->begin = 0;
	}
	add(&observer->service, record.end - record.begin);
	if (observer->ring)
		pyvmm_trace_put(observer->ring, &record);
}

/* --- Interrupts ------------------------------------------------------------------------------ */

/* Record that an interrupt was raised for `bits`. Any thread. */
void pyvmm_observe_interrupt(struct pyvmm_trace_ring *ring, uint32_t bits)
{
	struct pyvmm_record record = { .kind = PYVMM_RECORD_INTERRUPT, .address = bits };

	while (__atomic_exchange_n(&ring->lock, 1, __ATOMIC_ACQUIRE))
		;
	record.begin = record.end = pyvmm_observe_now();
	pyvmm_trace_put(ring, &record);
	__atomic_store_n(&ring->lock, 0, __ATOMIC_RELEASE);
}
