// SPDX-License-Identifier: Apache-2.0
/* TAP's ioctls that take a struct ifreq. */
#include <errno.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>

#include "net.h"

/*
 * Issue TUNSETIFF or TUNSETQUEUE. name has IFNAMSIZ bytes and receives the interface's name.
 * Returns the interface's flags, or -errno.
 */
int pyvmm_tun_interface(int fd, unsigned long request, char *name, int flags)
{
	struct ifreq interface = { 0 };

	memcpy(interface.ifr_name, name, IFNAMSIZ);
	interface.ifr_name[IFNAMSIZ - 1] = 0;
	interface.ifr_flags = (short)flags;
	if (ioctl(fd, request, &interface) < 0)
		return -errno;
	memcpy(name, interface.ifr_name, IFNAMSIZ);
	return (unsigned short)interface.ifr_flags;
}
