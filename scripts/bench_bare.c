// SPDX-License-Identifier: Apache-2.0
/*
 * KVM_RUN in the barest loop there is: what an exit costs before a VMM has done anything with it.
 */
#include <linux/kvm.h>
#include <stdint.h>
#include <sys/ioctl.h>

/* Run until the guest accesses the address `until`. Returns 0, or -1 for any other end. */
int bare_run(int fd, const struct kvm_run *run, uint64_t until)
{
	do {
		if (ioctl(fd, KVM_RUN, 0) < 0 || run->exit_reason != KVM_EXIT_MMIO)
			return -1;
	} while (run->mmio.phys_addr != until);
	return 0;
}
