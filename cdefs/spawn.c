// SPDX-License-Identifier: Apache-2.0
/*
 * Start a program that gets SIGTERM when the thread that started it ends: SIGTERM, because it may
 * have a disk's cache to write. It is sealed (seal.c), and may have walls (walls.c): guests talk to
 * it.
 *
 * Until exec the child runs on the parent's memory, as after vfork(2), whose stack it could not leave:
 * it may only make system calls, and none of the parent's signal handlers may run in it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "seal.h"
#include "spawn.h"

#define FIRST_FREE 256 /* above every number that a program gets */

#define STACK 65536

struct launch {
	const struct pyvmm_program *program;
	pid_t parent;
	volatile int error; /* of what the child has tried */
};

/* In the child: become the program. Returns if that fails. */
static void become(struct launch *launch)
{
	const struct pyvmm_program *program = launch->program;
	struct sigaction standard = { .sa_handler = SIG_DFL };
	sigset_t none;

	setsid();
	for (int number = 1; number < NSIG; number++)
		sigaction(number, &standard, NULL); /* ignored signals stay ignored over exec */
	for (uint32_t number = 0; number < program->fd_count; number++) {
		program->moved[number] = fcntl(program->fds[number], F_DUPFD, FIRST_FREE);
		if (program->moved[number] < 0)
			goto failed;
	}
	if (program->walls) {
		launch->error = -pyvmm_raise_walls(program->walls);
		if (launch->error)
			return;
	}
	/*
	 * After the walls: who becomes another user loses this setting. If the parent has ended
	 * before, no signal comes; then this process was reparented.
	 */
	if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0 || getppid() != launch->parent)
		_exit(127);
	for (uint32_t number = 0; number < program->fd_count; number++)
		if (dup2(program->moved[number], (int)number) < 0)
			goto failed;
#ifdef SYS_close_range
	syscall(SYS_close_range, program->fd_count, ~0u, 0);
#endif
	if (pyvmm_seal_child())
		goto failed;
	if (program->walls) {
		launch->error = -pyvmm_lock_walls();
		if (launch->error)
			return;
	}
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (!program->path)
		_exit(0); /* that was a trial */
	execve(program->path, program->argv, program->envp);
failed:
	launch->error = errno;
}

static int child(void *launch)
{
	become(launch);
	_exit(127);
}

/* Start the program. Returns its process id, or -errno. One thread at a time may call this. */
int pyvmm_spawn(const struct pyvmm_program *program)
{
	static char stack[STACK] __attribute__((aligned(16)));
	struct launch launch = { .program = program, .parent = getpid() };
	int flags = CLONE_VM | CLONE_VFORK | SIGCHLD, error;
	sigset_t all, former;
	pid_t pid;

	if (program->walls && !program->walls->root)
		flags |= CLONE_NEWUSER;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &former);
	pid = clone(child, stack + STACK, flags, &launch);
	error = pid < 0 ? errno : launch.error;
	if (pid >= 0 && error)
		waitpid(pid, NULL, 0); /* reap it: nobody else will */
	pthread_sigmask(SIG_SETMASK, &former, NULL);
	return error ? -error : pid;
}
