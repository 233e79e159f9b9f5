/* SPDX-License-Identifier: Apache-2.0 */
/* What threads of a machine's process may ask of the kernel: see sandbox.c. */
#ifndef PYVMM_SANDBOX_H
#define PYVMM_SANDBOX_H

#include <stdint.h>

/* What pthread_create asks for; needs <sched.h> (glibc, sysdeps/unix/sysv/linux/createthread.c). */
#define PYVMM_CLONE_THREAD                                                                       \
	(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SYSVSEM | CLONE_SIGHAND | CLONE_THREAD |       \
	 CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)

/* CENSUS, for tests: each call that is allowed is noted, too, and all are done. */
enum pyvmm_sandbox_mode {
	PYVMM_SANDBOX_OFF,
	PYVMM_SANDBOX_LOG,
	PYVMM_SANDBOX_ON,
	PYVMM_SANDBOX_CENSUS
};

/* Kinds of threads, of which sandbox.toml says what they may do. */
enum pyvmm_thread_kind {
	PYVMM_THREAD_LOOP,
	PYVMM_THREAD_VCPU,
	PYVMM_THREAD_QUEUE,
	PYVMM_THREAD_CONTROL,
};

#define PYVMM_DENIALS 512  /* different refused calls that are kept */
#define PYVMM_ARGUMENTS 6

/* A call that was refused, or with `log` would have been. */
struct pyvmm_denial {
	int number;     /* the system call's */
	int thread;     /* enum pyvmm_thread_kind */
	uint32_t ioctl; /* of ioctl(2): the request */
	uint32_t complete;
	uint64_t arguments[PYVMM_ARGUMENTS];
};

int pyvmm_sandbox(int wanted);
int pyvmm_sandbox_thread(int kind);
void pyvmm_sandbox_tell(int eventfd);
const struct pyvmm_denial *pyvmm_sandbox_denial(uint32_t index);
const char *pyvmm_call_name(uint32_t number);
const char *pyvmm_ioctl_name(uint32_t number);

#endif
