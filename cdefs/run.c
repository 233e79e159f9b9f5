// SPDX-License-Identifier: Apache-2.0
/*
 * KVM_RUN, the exits that need no Python, and the kick that gets a vCPU out of the guest.
 *
 * Everything here runs without Python's lock: cffi releases it around each call.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"
#include "run.h"

/* Not SIGUSR1, which people send by hand. */
#define KICK_SIGNAL (SIGRTMIN + 1)

/* The one door to the kernel. Returns the result of ioctl(2), or -errno. */
int pyvmm_ioctl(int fd, unsigned long request, uintptr_t arg)
{
	int result = ioctl(fd, request, arg);

	return result < 0 ? -errno : result;
}

/* --- The kick ------------------------------------------------------------------------------ */

/*
 * The signal only has to make KVM_RUN, or the entry to it, return EINTR. A handler in Python would
 * wake the main thread each time; an ignored signal would interrupt nothing.
 */
static void nothing(int signal)
{
	(void)signal;
}

/* Install the handler for the kick. Idempotent. Returns 0 or -errno. */
int pyvmm_kick_prepare(void)
{
	struct sigaction action = { .sa_handler = nothing }; /* no SA_RESTART */

	return sigaction(KICK_SIGNAL, &action, NULL) ? -errno : 0;
}

/*
 * Make the vCPU's thread leave KVM_RUN with EINTR, or not enter it: immediate_exit catches a thread
 * on its way in, the signal a thread inside. A kick that comes too late ends the next run at once,
 * so whoever kicks has to note elsewhere what for.
 */
void pyvmm_kick(struct pyvmm_vcpu *vcpu)
{
	int tid;

	__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	tid = atomic_load(&vcpu->tid);
	if (tid)
		syscall(SYS_tgkill, getpid(), tid, KICK_SIGNAL);
}

void pyvmm_clear_immediate_exit(struct pyvmm_vcpu *vcpu)
{
	__atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
}

/* --- Sinks --------------------------------------------------------------------------------- */

/* Return the number of waiting bytes. */
uint32_t pyvmm_sink_waiting(struct pyvmm_sink *sink)
{
	uint32_t tail = atomic_load(&sink->tail);

	return atomic_load(&sink->head) - tail;
}

/*
 * Return whether the sink counts as full. The caller may then wait until it no longer does: the
 * next drain reports that somebody found it full.
 */
int pyvmm_sink_full(struct pyvmm_sink *sink)
{
	if (pyvmm_sink_waiting(sink) < sink->full_at)
		return 0;
	atomic_store(&sink->was_full, 1);
	/* A drain between the two lines above did not see the flag: look again. */
	return pyvmm_sink_waiting(sink) >= sink->full_at;
}

static void lock(struct pyvmm_sink *sink)
{
	while (atomic_flag_test_and_set_explicit(&sink->lock, memory_order_acquire))
		;
}

static void unlock(struct pyvmm_sink *sink)
{
	atomic_flag_clear_explicit(&sink->lock, memory_order_release);
}

static int put(struct pyvmm_sink *sink, uint8_t byte, int from_store)
{
	uint32_t head, before;

	lock(sink);
	head = atomic_load_explicit(&sink->head, memory_order_relaxed);
	if ((from_store && !sink->takes_stores) || head - atomic_load(&sink->tail) >= sink->size) {
		unlock(sink);
		return -EAGAIN;
	}
	sink->ring[head & (sink->size - 1)] = byte;
	atomic_store(&sink->head, head + 1);
	atomic_fetch_add_explicit(&sink->written, 1, memory_order_relaxed);
	/* Look again at tail: a drain may have emptied the ring meanwhile and gone to sleep. */
	before = head - atomic_load(&sink->tail);
	unlock(sink);
	if (before == 0)
		eventfd_write(sink->eventfd, 1);
	return 0;
}

/* Put one byte. Returns 0, or -EAGAIN if there is no room at all. */
int pyvmm_sink_put(struct pyvmm_sink *sink, uint8_t byte)
{
	return put(sink, byte, 0);
}

/* Let the run loop put guests' stores, or not. When this returns, no put is in progress. */
void pyvmm_sink_take_stores(struct pyvmm_sink *sink, int take)
{
	lock(sink);
	sink->takes_stores = take;
	unlock(sink);
}

/*
 * Take up to max bytes. One thread at a time. *was_full tells whether somebody found the ring full
 * since the last drain, and may wait for room.
 */
uint32_t pyvmm_sink_drain(struct pyvmm_sink *sink, uint8_t *out, uint32_t max, int *was_full)
{
	uint32_t tail = atomic_load_explicit(&sink->tail, memory_order_relaxed);
	uint32_t length = atomic_load(&sink->head) - tail;
	uint32_t start = tail & (sink->size - 1);
	uint32_t first;

	if (length > max)
		length = max;
	first = sink->size - start < length ? sink->size - start : length;
	memcpy(out, sink->ring + start, first);
	memcpy(out + first, sink->ring, length - first);
	atomic_store(&sink->tail, tail + length);
	*was_full = length ? (int)atomic_exchange(&sink->was_full, 0) : 0;
	return length;
}

uint64_t pyvmm_sink_written(struct pyvmm_sink *sink)
{
	return atomic_load_explicit(&sink->written, memory_order_relaxed);
}

/* --- Exits that need no Python --------------------------------------------------------------- */

static struct pyvmm_answered *find(struct pyvmm_answers *answers, uint64_t address)
{
	uint32_t low = 0, high = answers->count;

	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (answers->entries[middle].address < address)
			low = middle + 1;
		else
			high = middle;
	}
	return &answers->entries[low]; /* the first at or after address: check it is in bounds */
}

static uint64_t shadow(struct pyvmm_answered *entry)
{
	uint64_t value = __atomic_load_n(&entry->value, __ATOMIC_ACQUIRE);

	if (entry->sink && pyvmm_sink_full(entry->sink)) {
		/* A guest that polls should not occupy a core; a kick ends the nap. */
		const struct timespec nap = { .tv_nsec = 1000000 };

		nanosleep(&nap, NULL);
		if (pyvmm_sink_full(entry->sink))
			value ^= entry->flip_when_full;
	}
	return value;
}

static uint64_t stored(const struct kvm_run *run)
{
	uint64_t value = 0;

	memcpy(&value, run->mmio.data, run->mmio.len);
	return value;
}

static int answer_load(struct pyvmm_answered *entry, struct kvm_run *run)
{
	uint64_t value;

	switch (entry->answer) {
	case PYVMM_ANSWER_SHADOW:
		value = shadow(entry);
		break;
	case PYVMM_ANSWER_INTERRUPT_STATUS:
		if (run->mmio.len != sizeof(uint32_t))
			return 0;
		value = pyvmm_interrupt_status(entry->interrupt);
		break;
	default:
		return 0;
	}
	memcpy(run->mmio.data, &value, sizeof(value));
	return 1;
}

static int answer_store(struct pyvmm_answered *entry, const struct kvm_run *run)
{
	switch (entry->answer) {
	case PYVMM_ANSWER_EVENTFD:
		eventfd_write(entry->eventfd, 1);
		return 1;
	case PYVMM_ANSWER_UNCHANGED:
		return stored(run) == __atomic_load_n(&entry->value, __ATOMIC_ACQUIRE);
	case PYVMM_ANSWER_SINK:
		return !put(entry->sink, run->mmio.data[0], 1);
	case PYVMM_ANSWER_INTERRUPT_ACK:
		if (run->mmio.len != sizeof(uint32_t))
			return 0;
		pyvmm_interrupt_acknowledge(entry->interrupt, (uint32_t)stored(run));
		return 1;
	default:
		return 0;
	}
}

/* Answer the MMIO exit in kvm_run. Returns 1, or 0 if there is no answer for it. */
int pyvmm_answer(struct pyvmm_vcpu *vcpu)
{
	struct pyvmm_answers *answers = atomic_load_explicit(&vcpu->answers, memory_order_acquire);
	uint64_t address = vcpu->run->mmio.phys_addr;
	struct pyvmm_answered *entry, *end;

	if (!answers)
		return 0;
	end = answers->entries + answers->count;
	for (entry = find(answers, address); entry < end && entry->address == address; entry++) {
		if (vcpu->run->mmio.is_write ? answer_store(entry, vcpu->run)
					     : answer_load(entry, vcpu->run))
			return 1;
	}
	return 0;
}

void pyvmm_set_answers(struct pyvmm_vcpu *vcpu, struct pyvmm_answers *answers)
{
	atomic_store_explicit(&vcpu->answers, answers, memory_order_release);
}

void pyvmm_set_value(struct pyvmm_answered *entry, uint64_t value)
{
	__atomic_store_n(&entry->value, value, __ATOMIC_RELEASE);
}

/* --- The run loop ---------------------------------------------------------------------------- */

/* Return the kind of the MMIO exit in kvm_run. Clear a store's data beyond its size. */
static int access_kind(struct kvm_run *run)
{
	uint32_t size = run->mmio.len;

	if (!run->mmio.is_write)
		return PYVMM_RUN_LOAD;
	if (size < sizeof(run->mmio.data))
		memset(run->mmio.data + size, 0, sizeof(run->mmio.data) - size);
	return PYVMM_RUN_STORE;
}

/* Add one to a counter that only this thread writes and others read: no bus lock is needed. */
static void count(_Atomic uint64_t *counter)
{
	uint64_t value = atomic_load_explicit(counter, memory_order_relaxed);

	atomic_store_explicit(counter, value + 1, memory_order_relaxed);
}

/*
 * Run the vCPU until an exit that Python must see. Returns PYVMM_RUN_STORE or _LOAD for an MMIO
 * exit, 0 for any other, all in kvm_run, or -errno as KVM_RUN gave it. EINTR is the answer to a
 * kick, so it is never retried here.
 */
int pyvmm_run(struct pyvmm_vcpu *vcpu)
{
	struct pyvmm_exit_observer *observer;
	int result;

	atomic_store(&vcpu->tid, (int)syscall(SYS_gettid));
	for (;;) {
		observer = atomic_load_explicit(&vcpu->observer, memory_order_acquire);
		if (observer)
			pyvmm_observe_entry(observer, vcpu->run);
		result = ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? -errno : 0;
		count(&vcpu->exits);
		if (observer)
			pyvmm_observe_exit(observer, vcpu->run, result);
		if (result || vcpu->run->exit_reason != KVM_EXIT_MMIO)
			break;
		if (!pyvmm_answer(vcpu)) {
			result = access_kind(vcpu->run);
			break;
		}
		count(&vcpu->answered);
		if (observer)
			pyvmm_observe_answer(observer, vcpu->run);
	}
	atomic_store(&vcpu->tid, 0);
	return result;
}

/* Count exits from the next entry to the guest on; NULL: do not. */
void pyvmm_observe(struct pyvmm_vcpu *vcpu, struct pyvmm_exit_observer *observer)
{
	atomic_store_explicit(&vcpu->observer, observer, memory_order_release);
}

/* Record the last exit, which no entry to the guest will end. No thread may be in pyvmm_run. */
void pyvmm_observe_end(struct pyvmm_vcpu *vcpu)
{
	struct pyvmm_exit_observer *observer = atomic_load(&vcpu->observer);

	if (observer)
		pyvmm_observe_entry(observer, vcpu->run);
}

uint64_t pyvmm_exits(struct pyvmm_vcpu *vcpu)
{
	return atomic_load_explicit(&vcpu->exits, memory_order_relaxed);
}

uint64_t pyvmm_answered_count(struct pyvmm_vcpu *vcpu)
{
	return atomic_load_explicit(&vcpu->answered, memory_order_relaxed);
}
