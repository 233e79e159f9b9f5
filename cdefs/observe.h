/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is seen of a machine at run time: counters of a vCPU's exits and of a queue's chains, and,
 * if there is a trace, a record of each.
 *
 *     run.c    exits       --.                    .--> counters, which Python reads
 *     ring.c   chains      --+--> observe.c  -----+
 *     suppress.c interrupts--'                    '--> ring of records --> trace.c --> JSON lines
 *
 * A vCPU or queue without an observer pays for one test of a pointer. Counters have one writer at a
 * time, and are read without a lock.
 */
#ifndef PYVMM_OBSERVE_H
#define PYVMM_OBSERVE_H

#include <stdint.h>
#include "kvm_abi.h"

#define PYVMM_EXIT_REASONS 64 /* KVM_EXIT_* that are counted by number */
#define PYVMM_BLOCK_SHIFT 9   /* addresses are counted by block: a virtio-mmio slot has 512 bytes */
#define PYVMM_BLOCKS 512      /* that a vCPU counts apart */

enum pyvmm_record_kind {
	PYVMM_RECORD_EXIT,
	PYVMM_RECORD_CHAIN,
	PYVMM_RECORD_INTERRUPT,
};

/* One thing that happened in [begin, end], nanoseconds of CLOCK_MONOTONIC. */
struct pyvmm_record {
	uint64_t begin;
	uint64_t end;
	uint64_t address; /* MMIO: guest physical; a chain: its id; an interrupt: InterruptStatus */
	uint64_t value;   /* MMIO: loaded or stored; a chain: bytes that the device could read */
	uint32_t size;    /* MMIO: bytes; a chain: bytes that the device wrote */
	uint16_t reason;  /* KVM_EXIT_*, or an errno of KVM_RUN if failed */
	uint8_t kind;     /* enum pyvmm_record_kind */
	uint8_t store : 1;
	uint8_t answered : 1; /* in C */
	uint8_t failed : 1;   /* KVM_RUN returned an error; EINTR is a kick */
};

/*
 * Records of one source, of which Python's loop takes the oldest. A full ring loses the newest:
 * the source never waits. 0 <= head - tail <= size; size is a power of two.
 */
struct pyvmm_trace_ring {
	struct pyvmm_record *records;
	uint32_t size;
	uint32_t head;
	uint32_t tail;
	uint32_t lock;  /* taken by producers if there may be several */
	uint64_t lost;
	int wake;       /* eventfd: signalled once when the ring is half full */
};

/* Accesses to one block of addresses. */
struct pyvmm_block {
	uint64_t number; /* address >> PYVMM_BLOCK_SHIFT, plus 1; 0: this entry is free */
	uint64_t loads;
	uint64_t stores;
	uint64_t answered; /* of both, in C */
};

/* The exits of one vCPU. Their sum is the number of returns from KVM_RUN. */
struct pyvmm_exit_observer {
	uint64_t reasons[PYVMM_EXIT_REASONS]; /* by KVM_EXIT_*; the last one: any larger number */
	uint64_t kicks;                       /* KVM_RUN returned EINTR */
	uint64_t failures;                    /* any other error */
	struct pyvmm_block blocks[PYVMM_BLOCKS]; /* a hash table */
	struct pyvmm_block elsewhere;         /* what found no room in it */
	struct pyvmm_trace_ring *ring;        /* or NULL */
	struct pyvmm_record pending;          /* the last exit, if it has not ended yet */
	uint8_t is_pending;
};

/* When a chain came to the device. */
struct pyvmm_flight {
	uint64_t begin;    /* ns; 0: not known */
	uint64_t readable; /* bytes */
};

/* The chains of one queue. */
struct pyvmm_queue_observer {
	uint64_t chains;    /* used */
	uint64_t readable;  /* bytes that the device could read in those popped */
	uint64_t written;   /* bytes that the device said it wrote */
	uint64_t service;   /* ns from pop to use, summed over the chains */
	struct pyvmm_flight *flights; /* by chain id; without them chains are not timed */
	uint32_t flight_count;
	struct pyvmm_trace_ring *ring; /* or NULL; then with flights */
};

uint64_t pyvmm_observe_now(void);
int pyvmm_trace_put(struct pyvmm_trace_ring *ring, const struct pyvmm_record *record);
void pyvmm_observe_entry(struct pyvmm_exit_observer *observer, const struct kvm_run *run);
void pyvmm_observe_exit(struct pyvmm_exit_observer *observer, const struct kvm_run *run,
			int result);
void pyvmm_observe_answer(struct pyvmm_exit_observer *observer, const struct kvm_run *run);
void pyvmm_observe_time(struct pyvmm_queue_observer *observer, struct pyvmm_flight *flights,
			uint32_t count);
void pyvmm_observe_pop(struct pyvmm_queue_observer *observer, uint16_t id, uint64_t readable);
void pyvmm_observe_use(struct pyvmm_queue_observer *observer, uint16_t id, uint32_t length);
void pyvmm_observe_interrupt(struct pyvmm_trace_ring *ring, uint32_t bits);

/* Names of addresses, sorted, for the trace. */
struct pyvmm_named {
	uint64_t base;
	uint64_t end;
	const char *name; /* as in a JSON string, without quotes */
};

struct pyvmm_names {
	uint32_t count;
	const struct pyvmm_named *entries;
};

/* What lines of JSON say about the records of one ring. */
struct pyvmm_trace_source {
	struct pyvmm_trace_ring *ring;
	uint64_t origin;    /* ns of CLOCK_MONOTONIC that are 0 in the trace */
	uint32_t process;
	uint32_t track;
	const char *name;   /* of the queue or interrupt, as in a JSON string */
	const struct pyvmm_names *names;
	uint32_t reason_count;
	const char *const *reasons; /* by KVM_EXIT_*; NULL: no name */
};

int64_t pyvmm_trace_format(struct pyvmm_trace_source *source, char *out, uint64_t size,
			   uint32_t *taken);
uint64_t pyvmm_trace_lost(struct pyvmm_trace_ring *ring);

#endif
