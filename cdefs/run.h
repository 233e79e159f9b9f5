/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PYVMM_RUN_H
#define PYVMM_RUN_H

#include <stdatomic.h>
#include <stdint.h>
#include "kvm_abi.h"
#include "observe.h"

/*
 * A sink takes the bytes that a guest stores to a data register, so that a store costs no Python.
 * Several vCPUs put, one thread drains. The first byte into an empty ring signals the eventfd.
 *
 *      tail                 head              0 <= head - tail <= size, both run freely;
 *   ----|#####################|-----          size is a power of two.
 */
struct pyvmm_sink {
	uint8_t *ring;
	uint32_t size;
	uint32_t full_at; /* bytes from which it counts as full; the rest is for guests that do not look */
	int eventfd;
	int takes_stores; /* the run loop may put; protected by lock */
	_Atomic uint32_t head;
	_Atomic uint32_t tail;
	_Atomic uint64_t written; /* bytes ever put */
	_Atomic uint32_t was_full; /* somebody found the ring full since the last drain */
	atomic_flag lock; /* producers only */
};

enum pyvmm_answer {
	PYVMM_ANSWER_EVENTFD, /* a store adds one to an eventfd */
	PYVMM_ANSWER_SINK,     /* a store puts its low byte into a sink, if that takes it */
	PYVMM_ANSWER_SHADOW,   /* a load returns a value that Python keeps up to date */
	PYVMM_ANSWER_UNCHANGED, /* a store of the present value is dropped */
	PYVMM_ANSWER_INTERRUPT_STATUS, /* a load returns the status of an interrupt */
	PYVMM_ANSWER_INTERRUPT_ACK,    /* a store clears its bits in that status */
};

struct pyvmm_interrupt; /* ring.h */

/*
 * One guest physical address that the run loop answers by itself. An address may have one answer
 * to loads and one to stores. Accesses of any size that start there count, as on the registers
 * that this is for; accesses to an interrupt's registers have four bytes (VIRTIO 1.2, 4.2.2.2).
 */
struct pyvmm_answered {
	uint64_t address;
	uint32_t answer;
	int eventfd;
	struct pyvmm_sink *sink;   /* a sink's; and a shadow's, for flip_when_full */
	uint64_t value;            /* shadow, unchanged; written by Python, read atomically */
	uint64_t flip_when_full;   /* bits of a shadow's value to flip while the sink is full */
	struct pyvmm_interrupt *interrupt;
};

/* Sorted by address. Once a vCPU has it, only values change. */
struct pyvmm_answers {
	uint32_t count;
	struct pyvmm_answered *entries;
};

enum pyvmm_run_result {
	PYVMM_RUN_STORE = 1,
	PYVMM_RUN_LOAD = 2,
};

struct pyvmm_vcpu {
	int fd;
	struct kvm_run *run;
	_Atomic(struct pyvmm_answers *) answers;
	_Atomic int tid;       /* the thread in pyvmm_run, or 0 */
	_Atomic uint64_t exits;    /* returns from KVM_RUN, answered in C or not */
	_Atomic uint64_t answered; /* those answered in C */
	_Atomic(struct pyvmm_exit_observer *) observer; /* or NULL */
};

int pyvmm_ioctl(int fd, unsigned long request, uintptr_t arg);

int pyvmm_kick_prepare(void);
int pyvmm_run(struct pyvmm_vcpu *vcpu);
void pyvmm_kick(struct pyvmm_vcpu *vcpu);
int pyvmm_answer(struct pyvmm_vcpu *vcpu);
void pyvmm_set_answers(struct pyvmm_vcpu *vcpu, struct pyvmm_answers *answers);
void pyvmm_set_value(struct pyvmm_answered *entry, uint64_t value);
void pyvmm_clear_immediate_exit(struct pyvmm_vcpu *vcpu);
uint64_t pyvmm_exits(struct pyvmm_vcpu *vcpu);
uint64_t pyvmm_answered_count(struct pyvmm_vcpu *vcpu);
void pyvmm_observe(struct pyvmm_vcpu *vcpu, struct pyvmm_exit_observer *observer);
void pyvmm_observe_end(struct pyvmm_vcpu *vcpu);

int pyvmm_sink_put(struct pyvmm_sink *sink, uint8_t byte);
uint32_t pyvmm_sink_drain(struct pyvmm_sink *sink, uint8_t *out, uint32_t max, int *was_full);
uint32_t pyvmm_sink_waiting(struct pyvmm_sink *sink);
int pyvmm_sink_full(struct pyvmm_sink *sink);
void pyvmm_sink_take_stores(struct pyvmm_sink *sink, int take);
uint64_t pyvmm_sink_written(struct pyvmm_sink *sink);

#endif
