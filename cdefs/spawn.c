// SPDX-License-Identifier: Apache-2.0
/*
 * Start a program that gets SIGTERM when the thread that started it ends: SIGTERM, because it may
 * have a disk's cache to write. It is sealed (seal.c): guests talk to it.
 *
 * Between vfork and exec the child runs on the parent's memory: it may only make system calls, and
 * none of the parent's signal handlers may run in it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "seal.h"
#include "spawn.h"

#define FIRST_FREE 256 /* above every number that a program gets */

/* In the child: become the program. Sets *error and returns if that fails. */
static void become(const struct pyvmm_program *program, pid_t parent, volatile int *error)
{
	struct sigaction standard = { .sa_handler = SIG_DFL };
	sigset_t none;

	/* If the parent has ended before this, no signal comes; then this process was reparented. */
	if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0 || getppid() != parent)
		_exit(127);
	setsid();
	for (int number = 1; number < NSIG; number++)
		sigaction(number, &standard, NULL); /* ignored signals stay ignored over exec */
	for (uint32_t number = 0; number < program->fd_count; number++) {
		program->moved[number] = fcntl(program->fds[number], F_DUPFD, FIRST_FREE);
		if (program->moved[number] < 0)
			goto failed;
	}
	for (uint32_t number = 0; number < program->fd_count; number++)
		if (dup2(program->moved[number], (int)number) < 0)
			goto failed;
#ifdef SYS_close_range
	syscall(SYS_close_range, program->fd_count, ~0u, 0);
#endif
	if (pyvmm_seal_child())
		goto failed;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execve(program->path, program->argv, program->envp);
failed:
	*error = errno;
}

/* Start the program. Returns its process id, or -errno. */
int pyvmm_spawn(const struct pyvmm_program *program)
{
	sigset_t all, former;
	volatile int error = 0;
	pid_t parent = getpid(), pid;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &former);
	pid = vfork();
	if (!pid) {
		become(program, parent, &error);
		_exit(127);
	}
	if (pid < 0)
		error = errno;
	else if (error)
		waitpid(pid, NULL, 0); /* reap it: nobody else will */
	pthread_sigmask(SIG_SETMASK, &former, NULL);
	return error ? -error : pid;
}
