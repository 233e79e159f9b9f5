// SPDX-License-Identifier: Apache-2.0
/*
 * Put walls around a machine's process: what its guest could do through it if it took it over.
 *
 *     namespaces  mount (its root directory is empty), network (without interfaces), IPC; root makes
 *                 them, others in a user namespace of their own, where the host allows those
 *     user        root becomes another user, alone; nobody keeps a capability
 *     Landlock    no file can be opened, no TCP port reached, no process outside signalled
 *
 * What is open stays open. The walls are the calling thread's, and those of threads that it starts:
 * there may be no other thread. Sources: namespaces(7), pivot_root(2), capabilities(7), landlock(7).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "isolate.h"

#define FIRST_LANDLOCK 444 /* landlock_create_ruleset; restrict_self is two more. Linux 5.13 */

#define FS_V1 0x1fffULL /* every access right of ABI 1: LANDLOCK_ACCESS_FS_EXECUTE to _MAKE_SYM */
#define FS_REFER (1ULL << 13) /* ABI 2 */
#define FS_TRUNCATE (1ULL << 14) /* ABI 3 */
#define FS_IOCTL_DEV (1ULL << 15) /* ABI 5 */
#define NET_TCP 3ULL /* bind, connect: ABI 4 */
#define SCOPES 3ULL /* abstract sockets, signals: ABI 6 */

struct ruleset {
	uint64_t handled_access_fs;
	uint64_t handled_access_net;
	uint64_t scoped;
};

/* Handle every right and allow none of them. Returns the walls that this makes, or -errno. */
static int restrict_by_landlock(void)
{
	long abi = syscall(FIRST_LANDLOCK, NULL, 0, 1 /* LANDLOCK_CREATE_RULESET_VERSION */);
	struct ruleset rules = { .handled_access_fs = FS_V1 };
	int walls = PYVMM_WALL_LANDLOCK, error = 0;
	size_t size = sizeof(uint64_t);
	long fd;

	if (abi < 0)
		return errno == ENOSYS || errno == EOPNOTSUPP ? 0 : -errno;
	if (abi >= 2)
		rules.handled_access_fs |= FS_REFER;
	if (abi >= 3)
		rules.handled_access_fs |= FS_TRUNCATE;
	if (abi >= 4) {
		rules.handled_access_net = NET_TCP;
		size = 2 * sizeof(uint64_t);
		walls |= PYVMM_WALL_TCP;
	}
	if (abi >= 5)
		rules.handled_access_fs |= FS_IOCTL_DEV;
	if (abi >= 6) {
		rules.scoped = SCOPES;
		size = sizeof(rules);
		walls |= PYVMM_WALL_SCOPE;
	}
	fd = syscall(FIRST_LANDLOCK, &rules, size, 0);
	if (fd < 0)
		return -errno;
	if (syscall(FIRST_LANDLOCK + 2, fd, 0) < 0)
		error = errno;
	close((int)fd);
	return error ? -error : walls;
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), error = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		error = -errno;
	close(fd);
	return error;
}

/* In a new user namespace: be still ourselves. Returns 0 or -errno. */
int pyvmm_map_user(uint32_t user, uint32_t group)
{
	char text[64];
	int error;

	snprintf(text, sizeof(text), "%u %u 1", user, user);
	error = write_file("/proc/self/uid_map", text);
	if (!error)
		error = write_file("/proc/self/setgroups", "deny");
	snprintf(text, sizeof(text), "%u %u 1", group, group);
	return error ? error : write_file("/proc/self/gid_map", text);
}

/* Make a user namespace, in which we are still ourselves. Returns 0 or -errno. */
static int become_owner(uid_t user, gid_t group)
{
	return unshare(CLONE_NEWUSER) < 0 ? -errno : pyvmm_map_user(user, group);
}

/* Make the working directory, where something is mounted, the root. Returns 0 or -errno. */
int pyvmm_enter_root(void)
{
	if (!syscall(SYS_pivot_root, ".", "."))
		return umount2(".", MNT_DETACH) < 0 || chdir("/") < 0 ? -errno : 0;
	/* An initial RAM file system cannot be left so; without CAP_SYS_CHROOT this is as good. */
	return chroot(".") < 0 || chdir("/") < 0 ? -errno : 0;
}

/* Make an empty directory the root. Returns 0 or -errno. */
static int empty_root(void)
{
	const char *place = "/proc"; /* any directory: the mount is ours alone */
	unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("pyvmm", place, "tmpfs", flags, "size=4k,nr_inodes=1,mode=555") < 0 ||
	    mount(NULL, place, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, NULL) < 0 ||
	    chdir(place) < 0)
		return -errno;
	return pyvmm_enter_root();
}

/*
 * Let no capability come back but those in *kept*, a mask. It takes CAP_SETPCAP, which a user
 * without any has no need of. Returns 0 or -errno.
 */
int pyvmm_bound_capabilities(uint64_t kept)
{
	for (int each = 0; prctl(PR_CAPBSET_READ, each, 0, 0, 0) >= 0; each++)
		if (!(kept >> each & 1) && prctl(PR_CAPBSET_DROP, each, 0, 0, 0) < 0 && errno != EPERM)
			return -errno;
	return 0;
}

/* Give up all capabilities but those in *kept*, a mask of the first 32. Returns 0 or -errno. */
int pyvmm_keep_capabilities(uint32_t kept)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { { kept, kept, kept }, { 0 } };

	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
		return -errno;
	return syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}

/* Make the namespaces that can be had. Returns the walls, or -errno. */
static int unshare_what_is_shared(void)
{
	static const struct {
		int flag, wall;
	} kinds[] = {
		{ CLONE_NEWNET, PYVMM_WALL_NETWORK },
		{ CLONE_NEWIPC, PYVMM_WALL_IPC },
		{ CLONE_NEWNS, PYVMM_WALL_FILES },
	};
	int walls = 0;

	for (size_t each = 0; each < sizeof(kinds) / sizeof(*kinds); each++) {
		if (!unshare(kinds[each].flag))
			walls |= kinds[each].wall;
		else if (errno != EINVAL && errno != ENOSPC) /* not in this kernel; no more of them */
			return -errno;
	}
	if (walls & PYVMM_WALL_FILES) {
		int error = empty_root();

		if (error)
			return error;
	}
	return walls;
}

/*
 * Put up the walls that this host and this user allow; *user* is whom root becomes. Only root must
 * get all but Landlock. Returns the walls, or -errno.
 */
int pyvmm_isolate(uint32_t user)
{
	struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
	int walls = 0, more, error;

	if (!geteuid())
		setrlimit(RLIMIT_MEMLOCK, &all); /* VFIO pins RAM at each power-on */
	else if (!become_owner(geteuid(), getegid()))
		walls |= PYVMM_WALL_USER;
	if (!geteuid() || walls) {
		more = unshare_what_is_shared();
		if (more < 0)
			return more;
		walls |= more;
	}
	error = pyvmm_bound_capabilities(0);
	if (error)
		return error;
	if (!geteuid()) {
		if (setgroups(0, NULL) < 0 || syscall(SYS_setresgid, user, user, user) < 0 ||
		    syscall(SYS_setresuid, user, user, user) < 0)
			return -errno;
		walls |= PYVMM_WALL_USER;
	}
	error = pyvmm_keep_capabilities(0);
	if (error)
		return error;
	more = restrict_by_landlock();
	return more < 0 ? more : walls | more;
}
