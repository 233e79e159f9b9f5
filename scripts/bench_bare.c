// SPDX-License-Identifier: Apache-2.0
/*
 * KVM_RUN in the barest loop there is: what an exit costs before a VMM has done anything with it.
 * And a doorbell, which is a system call: that much of it is the kernel's.
 */
#include <linux/kvm.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <unistd.h>

/*
 * Run until the guest accesses the address `until`. Returns 0, or -1 for any other end.
 * With an eventfd >= 0, add one to it at each exit.
 */
int bare_run(int fd, const struct kvm_run *run, uint64_t until, int eventfd)
{
	uint64_t one = 1;

	do {
		if (ioctl(fd, KVM_RUN, 0) < 0 || run->exit_reason != KVM_EXIT_MMIO)
			return -1;
		if (eventfd >= 0 && write(eventfd, &one, sizeof(one)) < 0)
			return -1;
	} while (run->mmio.phys_addr != until);
	return 0;
}
