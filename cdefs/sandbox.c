// SPDX-License-Identifier: Apache-2.0
/*
 * seccomp filters for the threads of a machine's process, and what happens at a call that they
 * refuse. The policy is sandbox.toml; filters.py makes _filters.h of it when pyvmm is built.
 *
 *   call that no rule allows --SECCOMP_RET_TRAP--> SIGSYS, in the thread: note it, tell the loop
 *       on:   the call has failed with EPERM
 *       log:  do the call after all, from `gate`, whose address the filter lets through
 *       census: the same for the calls that the policy allows
 *
 * SIGSYS, and not a user notification: only one filter of a thread may have a listener, and each
 * thread has two filters; and the listener would have to be another process. The report is made by
 * the thread itself, so whoever controls that thread can suppress the report. The refusal stands. A
 * thread that blocks SIGSYS is killed by the kernel, with its process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/seccomp.h>
#include <linux/vhost.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "kvm_abi.h"
#include "sandbox.h"
#include "vfio_abi.h"

/* Stands for getpid() in filters until one is installed: no process ID is as large (PID_MAX_LIMIT,
 * include/linux/threads.h). */
#define PYVMM_OURSELVES 0x7fffffff

#include "_filters.h"

#ifndef SYS_SECCOMP /* <asm-generic/siginfo.h>; not in the C library's headers */
#define SYS_SECCOMP 1
#endif

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

static const struct {
	const struct sock_filter *code;
	uint16_t length;
} filters[] = {
	[PYVMM_THREAD_LOOP] = { loop_filter, COUNT(loop_filter) },
	[PYVMM_THREAD_VCPU] = { vcpu_filter, COUNT(vcpu_filter) },
	[PYVMM_THREAD_QUEUE] = { queue_filter, COUNT(queue_filter) },
	[PYVMM_THREAD_CONTROL] = { control_filter, COUNT(control_filter) },
};

static int mode = PYVMM_SANDBOX_OFF;
static int teller = -1;
static struct pyvmm_denial denials[PYVMM_DENIALS];
static uint32_t noted; /* entries of `denials` that are taken, or more */

/* initial-exec: no allocation at the first access, which may be in a signal handler. */
static __thread int thread_kind __attribute__((tls_model("initial-exec")));

#if defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#define RESULT(context) (context)->uc_mcontext.regs[0]
#define ARGUMENT(context, number) (context)->uc_mcontext.regs[number]
#elif defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#define RESULT(context) (context)->uc_mcontext.gregs[REG_RAX]
#define ARGUMENT(context, number)                                                                \
	(context)->uc_mcontext.gregs[(const int[]){ REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8,    \
						    REG_R9 }[number]]
#endif

extern const char pyvmm_gate_end[] __attribute__((visibility("hidden")));

/* Make a system call; return its result. With `log`, filters let through what comes from here. */
static __attribute__((noinline, noclone)) long gate(long number, const uint64_t *arguments)
{
#if defined(__aarch64__)
	register uint64_t x8 asm("x8") = (uint64_t)number;
	register uint64_t x0 asm("x0") = arguments[0];
	register uint64_t x1 asm("x1") = arguments[1];
	register uint64_t x2 asm("x2") = arguments[2];
	register uint64_t x3 asm("x3") = arguments[3];
	register uint64_t x4 asm("x4") = arguments[4];
	register uint64_t x5 asm("x5") = arguments[5];

	asm volatile("svc #0\n\t.hidden pyvmm_gate_end\n\t.globl pyvmm_gate_end\npyvmm_gate_end:"
		     : "+r"(x0)
		     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
		     : "memory");
	return (long)x0;
#elif defined(__x86_64__)
	register uint64_t r10 asm("r10") = arguments[3];
	register uint64_t r8 asm("r8") = arguments[4];
	register uint64_t r9 asm("r9") = arguments[5];
	long result;

	asm volatile("syscall\n\t.hidden pyvmm_gate_end\n\t.globl pyvmm_gate_end\npyvmm_gate_end:"
		     : "=a"(result)
		     : "a"(number), "D"(arguments[0]), "S"(arguments[1]), "d"(arguments[2]),
		       "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return result;
#endif
}

/* Keep a call that was refused, unless it is known already, or too many are. */
static void note(const struct pyvmm_denial *denial)
{
	uint32_t known = __atomic_load_n(&noted, __ATOMIC_ACQUIRE), index;

	for (index = 0; index < known && index < PYVMM_DENIALS; index++)
		if (denials[index].number == denial->number &&
		    denials[index].thread == denial->thread &&
		    denials[index].ioctl == denial->ioctl)
			return;
	index = known >= PYVMM_DENIALS ? known : __atomic_fetch_add(&noted, 1, __ATOMIC_ACQ_REL);
	if (index >= PYVMM_DENIALS)
		return;
	denials[index] = *denial;
	__atomic_store_n(&denials[index].complete, 1, __ATOMIC_RELEASE);
	eventfd_write(__atomic_load_n(&teller, __ATOMIC_RELAXED), 1);
}

/* A new stack or a shared one: the handler's would be of no use to the child. */
static int starts_on_this_stack(int number, uint64_t flags)
{
#ifdef SYS_vfork
	if (number == SYS_vfork)
		return 1;
#endif
	return number == SYS_clone && flags & CLONE_VM;
}

static void refuse(int signal_number, siginfo_t *info, void *opaque)
{
	ucontext_t *context = opaque;
	struct pyvmm_denial denial = { .number = info->si_syscall, .thread = thread_kind };
	int kept = errno;

	(void)signal_number;
	if (info->si_code != SYS_SECCOMP)
		return;
	for (int i = 0; i < PYVMM_ARGUMENTS; i++)
		denial.arguments[i] = (uint64_t)ARGUMENT(context, i);
	if (info->si_syscall == SYS_ioctl)
		denial.ioctl = (uint32_t)denial.arguments[1];
	note(&denial);
	if (mode != PYVMM_SANDBOX_ON && info->si_arch == ARCH &&
	    !starts_on_this_stack(info->si_syscall, denial.arguments[0]))
		RESULT(context) = gate(info->si_syscall, denial.arguments);
	else
		RESULT(context) = -EPERM;
	errno = kept;
}

static void append(struct sock_fprog *program, const struct sock_filter *code, uint16_t length)
{
	memcpy(program->filter + program->len, code, length * sizeof(*code));
	program->len += length;
}

/* Install a filter for the calling thread. Returns 0 or -errno. */
static int install(int kind)
{
	uint64_t end = (uintptr_t)pyvmm_gate_end;
	struct sock_filter through[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)end, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
			 offsetof(struct seccomp_data, instruction_pointer) + 4),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(end >> 32), 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	}; /* little-endian, as both architectures are */
	struct sock_filter census[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	}; /* what a handler cannot do for its thread is not noted */
	struct sock_filter code[BPF_MAXINSNS];
	struct sock_fprog program = { .filter = code };

	if (mode != PYVMM_SANDBOX_ON)
		append(&program, through, COUNT(through));
	if (mode == PYVMM_SANDBOX_CENSUS)
		append(&program, census, COUNT(census));
	else
		append(&program, filters[kind].code, filters[kind].length);
	for (int i = 0; i < program.len; i++)
		if (code[i].code == (BPF_JMP | BPF_JEQ | BPF_K) && code[i].k == PYVMM_OURSELVES)
			code[i].k = (uint32_t)getpid();
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		return -errno;
	thread_kind = kind;
	return 0;
}

#define MMAP_FROM (2 << 20) /* bytes: a larger block is a mapping of its own */
#define TRIM_FROM (2 * MMAP_FROM) /* free bytes at the end of an arena that go back to the kernel */

/* In a thread, whose arena of malloc's is not the first: let the arena grow, and give it back. */
static void *give_back(void *unused)
{
	void *volatile blocks[TRIM_FROM / MMAP_FROM + 2];

	for (size_t i = 0; i < COUNT(blocks); i++)
		blocks[i] = malloc(MMAP_FROM - (4 << 10));
	for (size_t i = 0; i < COUNT(blocks); i++)
		free(blocks[i]);
	return unused;
}

/*
 * Let glibc's malloc read now what it reads of the host when it first needs to know: how many CPUs
 * there are, for its limit of arenas, once many threads allocate (malloc/arena.c; the limit is
 * glibc's own), and whether memory is overcommitted, once an arena shrinks (malloc-sysdep.h).
 */
static void settle_malloc(void)
{
#ifdef M_ARENA_MAX
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	pthread_t thread;

	mallopt(M_ARENA_MAX, 8 * (cpus > 0 ? (int)cpus : 1));
	mallopt(M_MMAP_THRESHOLD, MMAP_FROM);
	mallopt(M_TRIM_THRESHOLD, TRIM_FROM);
	if (!pthread_create(&thread, NULL, give_back, NULL))
		pthread_join(thread, NULL);
#endif
}

/*
 * Confine the calling thread, and those that it starts from now on, as the loop's. It has no other
 * thread, and PR_SET_NO_NEW_PRIVS is set. wanted: not PYVMM_SANDBOX_OFF. Returns 0 or -errno:
 * EINVAL or ENOSYS, the kernel has no seccomp filters.
 */
int pyvmm_sandbox(int wanted)
{
	struct sigaction action = { .sa_sigaction = refuse, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	int error;

	if (wanted == PYVMM_SANDBOX_CENSUS)
		action.sa_flags |= SA_NODEFER; /* other signals' handlers make calls, too */
	if (sigaction(SIGSYS, &action, NULL))
		return -errno;
	settle_malloc();
	mode = wanted;
	error = install(PYVMM_THREAD_LOOP);
	if (error)
		mode = PYVMM_SANDBOX_OFF;
	return error;
}

/* Confine the calling thread further, as one of that kind, if the process is confined. Returns 0 or
 * -errno. */
int pyvmm_sandbox_thread(int kind)
{
	sigset_t ours;

	if (mode == PYVMM_SANDBOX_OFF || kind == PYVMM_THREAD_LOOP)
		return 0;
	sigemptyset(&ours);
	sigaddset(&ours, SIGSYS);
	pthread_sigmask(SIG_UNBLOCK, &ours, NULL);
	return install(kind);
}

/* Signal this eventfd at each call that is refused and was not before; -1: none. */
void pyvmm_sandbox_tell(int eventfd)
{
	__atomic_store_n(&teller, eventfd, __ATOMIC_RELAXED);
}

/* Return refused call number `index`, or NULL. */
const struct pyvmm_denial *pyvmm_sandbox_denial(uint32_t index)
{
	if (index >= PYVMM_DENIALS || !__atomic_load_n(&denials[index].complete, __ATOMIC_ACQUIRE))
		return NULL;
	return &denials[index];
}

/* Return a system call's name; "" if it has none here. */
const char *pyvmm_call_name(uint32_t number)
{
	return number < COUNT(call_names) && call_names[number] ? call_names[number] : "";
}

/* Return the name of an ioctl that the policy knows; "" for others. */
const char *pyvmm_ioctl_name(uint32_t number)
{
	for (size_t i = 0; i < COUNT(ioctl_names); i++)
		if (ioctl_names[i].number == number)
			return ioctl_names[i].name;
	return "";
}
