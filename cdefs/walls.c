// SPDX-License-Identifier: Apache-2.0
/*
 * Put walls around a daemon, in the child that is about to become it: what a guest could do that took
 * the daemon over.
 *
 *     namespaces  mount (its root directory has what `places` lists and nothing else), network
 *                 (without interfaces), IPC; root's child makes them, others' in a user namespace
 *     user        root's child becomes another user, alone
 *     seccomp     the calls of storage_daemon.toml
 *
 * One capability is left to a daemon that root has started: CAP_DAC_OVERRIDE, as the files in its
 * root directory belong to others. Other directories it cannot name.
 *
 * The child runs on the parent's memory (spawn.c): system calls only. Sources: open_tree(2),
 * move_mount(2), mount_setattr(2), mount_namespaces(7), capabilities(7), seccomp(2).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "isolate.h"
#include "sandbox.h"
#include "walls.h"

#include "_daemon_filters.h"

/* <linux/mount.h>, of which C libraries and kernels' headers have different parts. */
#define NR_OPEN_TREE 428 /* Linux 5.2 */
#define CLONE_OF_TREE 1
#define RECURSIVE 0x8000
#define NR_MOVE_MOUNT 429
#define FROM_DESCRIPTOR 4
#define NR_MOUNT_SETATTR 442 /* Linux 5.12 */
#define ATTR_RDONLY 1
#define ATTR_NOSUID 2
#define ATTR_NODEV 4
#define ATTR_NOEXEC 8

struct attributes {
	uint64_t set, clear, propagation, user_namespace;
};

#define KEPT (1u << CAP_DAC_OVERRIDE)

/* Take a copy of the mount of *place*, with the rights that it is to have. Returns 0 or -errno. */
static int take(struct pyvmm_place *place)
{
	struct attributes rights = { .set = ATTR_NOSUID };
	struct stat wanted, found;

	place->mount = (int)syscall(NR_OPEN_TREE, AT_FDCWD, place->source,
				    CLONE_OF_TREE | RECURSIVE | O_CLOEXEC);
	if (place->mount < 0)
		return -errno;
	if (place->pinned >= 0) {
		if (fstat(place->pinned, &wanted) || fstat(place->mount, &found))
			return -errno;
		if (wanted.st_dev != found.st_dev || wanted.st_ino != found.st_ino)
			return -ESTALE;
		rights.set |= ATTR_NOEXEC;
	}
	if (place->kind != PYVMM_PLACE_WRITABLE)
		rights.set |= ATTR_RDONLY;
	if (place->kind == PYVMM_PLACE_TREE)
		rights.set |= ATTR_NODEV;
	return syscall(NR_MOUNT_SETATTR, place->mount, "", AT_EMPTY_PATH | RECURSIVE, &rights,
		       sizeof(rights)) < 0 ?
		       -errno :
		       0;
}

/* Make *place* below the working directory. Returns 0 or -errno. */
static int make(const struct pyvmm_place *place)
{
	int fd;

	if (place->kind == PYVMM_PLACE_LINK)
		return symlink(place->source, place->target) < 0 ? -errno : 0;
	if (place->kind <= PYVMM_PLACE_TREE) {
		/* A tree of the host's may be there already, and have it. */
		if (mkdir(place->target, 0755) < 0 && errno != EEXIST && errno != EROFS)
			return -errno;
	} else {
		fd = open(place->target, O_RDONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600);
		if (fd < 0)
			return -errno;
		close(fd);
	}
	if (place->kind == PYVMM_PLACE_DIRECTORY)
		return 0;
	if (syscall(NR_MOVE_MOUNT, place->mount, "", AT_FDCWD, place->target, FROM_DESCRIPTOR) < 0)
		return -errno;
	close(place->mount);
	return 0;
}

/* Make a root directory of the places, and nothing else. Returns 0 or -errno. */
static int make_root(const struct pyvmm_walls *walls)
{
	struct attributes rights = { .set = ATTR_RDONLY };
	const char *place = "/proc"; /* any directory: the mount is ours alone */
	int error = 0;

	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return -errno;
	for (uint32_t each = 0; each < walls->count && !error; each++)
		if (walls->places[each].kind >= PYVMM_PLACE_TREE)
			error = take(&walls->places[each]);
	if (error)
		return error;
	if (mount("pyvmm", place, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=1m,mode=755") < 0 ||
	    chdir(place) < 0)
		return -errno;
	for (uint32_t each = 0; each < walls->count && !error; each++)
		error = make(&walls->places[each]);
	if (error)
		return error;
	if (syscall(NR_MOUNT_SETATTR, AT_FDCWD, ".", 0, &rights, sizeof(rights)) < 0)
		return -errno;
	return pyvmm_enter_root();
}

/* Become user and group *user*, which has no other process, and keep `KEPT`. Returns 0 or -errno. */
static int become_user(uint32_t user)
{
	int error;

	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 || syscall(SYS_setgroups, 0, NULL) < 0 ||
	    syscall(SYS_setresgid, user, user, user) < 0 ||
	    syscall(SYS_setresuid, user, user, user) < 0)
		return -errno;
	error = pyvmm_keep_capabilities(KEPT);
	if (!error && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0) < 0)
		error = -errno;
	return error;
}

/*
 * Make the namespaces, and become another user. The caller has CAP_SYS_ADMIN: root's, or in a user
 * namespace of its own. Returns 0 or -errno.
 */
int pyvmm_raise_walls(const struct pyvmm_walls *walls)
{
	int error = walls->root ? 0 : pyvmm_map_user(walls->user, walls->group);

	if (error)
		return error;
	if (unshare(CLONE_NEWNS) < 0)
		return -errno;
	if ((unshare(CLONE_NEWNET) < 0 || unshare(CLONE_NEWIPC) < 0) && errno != EINVAL)
		return -errno; /* EINVAL: not in this kernel */
	error = make_root(walls);
	if (!error)
		error = pyvmm_bound_capabilities(walls->root ? KEPT : 0);
	if (error)
		return error;
	return walls->root ? become_user(PYVMM_FIRST_USER + (uint32_t)getpid()) :
				   pyvmm_keep_capabilities(0);
}

/* Install the filter. It comes last, and PR_SET_NO_NEW_PRIVS before. Returns 0 or -errno. */
int pyvmm_lock_walls(void)
{
	struct sock_fprog program = {
		.filter = storage_filter,
		.len = sizeof(storage_filter) / sizeof(*storage_filter),
	};

	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0 ? -errno : 0;
}
