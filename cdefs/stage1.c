// SPDX-License-Identifier: Apache-2.0
/*
 * What a load through one of our own mappings meets, and how long loads take.
 *
 * Both run in a child that vfork makes. The child has the parent's memory, so every mapping is
 * there, VM_DONTCOPY or not, and its own signal dispositions: a fault ends the child and leaves
 * the process's handlers and its other threads alone. It makes only system calls and loads. A
 * handler catches the fault, so that no core is dumped: before Linux 5.16 that would have killed
 * everything that shares the memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

#include "stage1.h"

#define LINES 64
#define LINE 64 /* bytes from one timed load to the next; LINES of them are 4096 bytes */
#define TRIES 16

/* For the handler. In the initial-exec model, as the general one would take the dynamic linker. */
static _Thread_local struct pyvmm_fault *fault_of_child
	__attribute__((tls_model("initial-exec")));

static void faulted(int number, siginfo_t *info, void *context)
{
	(void)context;
	fault_of_child->number = number;
	fault_of_child->code = info->si_code;
	_exit(0);
}

/* In the child: let faults, and no other signal, reach it. */
static void catch_faults(struct pyvmm_fault *fault)
{
	static const int numbers[] = { SIGBUS, SIGSEGV, SIGILL };
	struct sigaction action = { .sa_sigaction = faulted, .sa_flags = SA_SIGINFO };
	sigset_t faults;

	fault_of_child = fault;
	sigfillset(&action.sa_mask);
	sigemptyset(&faults);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		sigaction(numbers[i], &action, NULL);
		sigaddset(&faults, numbers[i]);
	}
	sigprocmask(SIG_UNBLOCK, &faults, NULL);
}

/* Run work(address, result) in a child. Returns 0, with *fault set, or -errno. */
static int in_child(void (*work)(uintptr_t address, void *result), uintptr_t address,
		    void *result, struct pyvmm_fault *fault)
{
	sigset_t all, former;
	int error = 0;
	pid_t pid;

	fault->number = -1;
	fault->code = 0;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &former);
	pid = vfork();
	if (!pid) {
		catch_faults(fault);
		work(address, result);
		fault->number = 0;
		_exit(0);
	}
	if (pid < 0)
		error = errno;
	else
		waitpid(pid, NULL, 0); /* the result is in memory: a process may ignore SIGCHLD */
	pthread_sigmask(SIG_SETMASK, &former, NULL);
	if (!error && fault->number < 0)
		error = ECHILD; /* killed by something that is no fault */
	return -error;
}

/* --- One load -------------------------------------------------------------------------------- */

static void load(uintptr_t address, void *result)
{
#ifdef __aarch64__
	uint64_t *value = result;

	__asm__ volatile("ldr %0, [%1]" : "=r"(*value) : "r"(address) : "memory");
#else
	const volatile struct __attribute__((packed)) {
		uint64_t value;
	} *unaligned = (const void *)address;

	*(uint64_t *)result = unaligned->value;
#endif
}

/*
 * Load 8 bytes at the address, which need not be aligned, as one access. *fault then has the
 * signal that the load met and its si_code, or 0. Returns 0, or -errno if there was no child.
 */
int pyvmm_stage1_load(uintptr_t address, struct pyvmm_fault *fault)
{
	uint64_t value;

	return in_child(load, address, &value, fault);
}

/* --- Many loads ------------------------------------------------------------------------------ */

#if defined(__aarch64__)

static uint64_t now(void)
{
	uint64_t ticks;

	__asm__ volatile("isb; mrs %0, cntvct_el0; isb" : "=r"(ticks) : : "memory");
	return ticks;
}

static void flush(uintptr_t address)
{
	__asm__ volatile("dc civac, %0" : : "r"(address) : "memory");
}

static void flushed(void)
{
	__asm__ volatile("dsb sy" : : : "memory");
}

#elif defined(__x86_64__)

/* No host of pyvmm's subject, but a machine with caches on which the method can be tested. */
static uint64_t now(void)
{
	uint32_t low, high;

	__asm__ volatile("mfence; lfence; rdtsc; lfence" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static void flush(uintptr_t address)
{
	__asm__ volatile("clflush (%0)" : : "r"(address) : "memory");
}

static void flushed(void)
{
	__asm__ volatile("mfence" : : : "memory");
}

#endif

#if defined(__aarch64__) || defined(__x86_64__)

/* The ticks of one load of each line of a page: each address depends on the load before it. */
static uint64_t walk(uintptr_t address)
{
	uint64_t start = now(), value = 0, nothing = 0;

	__asm__ volatile("" : "+r"(nothing)); /* 0, which the compiler does not know */
	for (uint64_t i = 0; i < LINES; i++) {
		uint64_t line = i * 37 % LINES; /* no order that a prefetcher would see */

		value = *(const volatile uint64_t *)(address + line * LINE + (value & nothing));
	}
	__asm__ volatile("" : : "r"(value));
	return now() - start;
}

static void time_walks(uintptr_t address, void *result)
{
	struct pyvmm_walks *walks = result;

	for (int i = 0; i < TRIES; i++) {
		uint64_t ticks;

		for (uint64_t line = 0; line < LINES; line++)
			flush(address + line * LINE);
		flushed();
		ticks = walk(address);
		if (!i || ticks < walks->cold)
			walks->cold = ticks;
		ticks = walk(address);
		if (!i || ticks < walks->warm)
			walks->warm = ticks;
	}
}

/*
 * Time loads of the 4096 bytes at the address, which is a multiple of that: after cleaning and
 * invalidating their lines, and once more. The least of several tries, in ticks that only compare.
 * Returns as pyvmm_stage1_load does.
 */
int pyvmm_stage1_walk(uintptr_t address, struct pyvmm_walks *walks, struct pyvmm_fault *fault)
{
	return in_child(time_walks, address, walks, fault);
}

#else

int pyvmm_stage1_walk(uintptr_t address, struct pyvmm_walks *walks, struct pyvmm_fault *fault)
{
	(void)address;
	(void)walks;
	(void)fault;
	return -ENOSYS;
}

#endif
