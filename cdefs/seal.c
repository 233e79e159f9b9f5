// SPDX-License-Identifier: Apache-2.0
/*
 * Give up what a machine's process does not need once its guest runs, for good.
 *
 *     PR_SET_NO_NEW_PRIVS  execve(2) grants no privileges: no set-user-ID program is of use
 *     PR_SET_MDWE          no memory becomes executable that was not, and none is made writable and
 *                          executable (Linux 6.3)
 *     RLIMIT_CORE 0        no core file; a handler in core_pattern is started all the same, but guest
 *                          memory is left out of its dump (MADV_DONTDUMP, vmm/memory.py)
 *
 * All three are inherited by children. PR_SET_MDWE is the memory's and not the process's: a child
 * made by vfork would set it for its parent.
 */
#include <errno.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "seal.h"

#ifndef PR_SET_MDWE /* C libraries up to 2.37 */
#define PR_SET_MDWE 65
#define PR_MDWE_REFUSE_EXEC_GAIN 1
#endif

/* Seal a child that shares its parent's memory. Makes system calls only. Returns 0 or -errno. */
int pyvmm_seal_child(void)
{
	struct rlimit none = { 0 };

	if (setrlimit(RLIMIT_CORE, &none) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	return 0;
}

/* Seal this process. Returns 0 or -errno. A kernel without PR_SET_MDWE is no error. */
int pyvmm_seal(void)
{
	int error = pyvmm_seal_child();

	if (error)
		return error;
	if (prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) && errno != EINVAL)
		return -errno;
	return 0;
}
