"""/dev/kvm: KVM itself."""

from __future__ import annotations

import errno
from typing import Final

from vmm._native import lib
from vmm.errors import HostError
from vmm.fd import open_node
from vmm.kvm.capability import Cap
from vmm.kvm.fd import KvmFd
from vmm.kvm.ioctls import Ioctl
from vmm.kvm.vm import Vm

DEVICE: Final = "/dev/kvm"

DEFAULT_IPA_BITS: Final = 40
"""The IPA size of a VM of type 0 (Documentation/virt/kvm/api.rst, 4.2)."""

HINTS: Final = {
    errno.ENOENT: "this host has no KVM (is the kvm module loaded?); --host lab runs an emulated "
    "arm64 host that has",
    errno.EACCES: "join the group that owns it (usually 'kvm') and log in again, or run as root",
    errno.EPERM: "the sandbox or container you are in forbids it: let /dev/kvm through",
    errno.ENXIO: "the kvm module found no virtualization support in this CPU (switched off in "
    "firmware, or we are a guest without nested virtualization)",
    errno.ENODEV: "the kvm module found no virtualization support in this CPU",
}


class System(KvmFd):
    """KVM's system file descriptor.

    `create_vm` enables *vm_capabilities* on each VM (KVM_ENABLE_CAP).
    """

    vm_capabilities: tuple[int, ...] = ()

    @classmethod
    def open(cls, path: str = DEVICE) -> System:
        """Open KVM. Raises `HostError` if there is none, or no permission to use it."""
        system = cls(open_node(path, f"cannot open {path}", HINTS))
        try:
            system.check_version()
        except BaseException:
            system.close()
            raise
        return system

    def check_version(self) -> None:
        """Raise `HostError` unless this is KVM and speaks the one stable API version."""
        version = self.ioctl(Ioctl.KVM_GET_API_VERSION)
        if version != lib.KVM_API_VERSION:
            raise HostError(
                f"{DEVICE} speaks KVM API version {version}, not {lib.KVM_API_VERSION}",
                "Linux since 2.6.22 speaks 12: is this KVM?",
            )

    def check_extension(self, capability: int) -> int:
        """Return KVM's value of *capability*: 0 is no, others depend on the capability.

        Capabilities that belong to a VM may be 0 here, or raise `KvmError`.
        """
        return self.ioctl(Ioctl.KVM_CHECK_EXTENSION, capability, capability=int(capability))

    def vcpu_mmap_size(self) -> int:
        """Return the size of a vCPU's shared mapping (``kvm_run`` and more), in bytes."""
        return self.ioctl(Ioctl.KVM_GET_VCPU_MMAP_SIZE)

    def ipa_bits(self) -> int:
        """Return the largest IPA size of a VM, in bits (arm64)."""
        # 0: the kernel has no choice to offer (api.rst, 4.2).
        return self.check_extension(Cap.ARM_VM_IPA_SIZE) or DEFAULT_IPA_BITS

    def create_vm(self, end: int = 0) -> Vm:
        """Create a VM.

        On arm64 its IPA space has KVM's default of 40 bits. It has fewer if the host has fewer,
        where KVM refuses its own default, and more if *end*, the first address past everything in
        the machine, needs more. Raises `KvmError`.
        """
        bits = max(min(DEFAULT_IPA_BITS, self.ipa_bits()), (end - 1).bit_length())
        machine_type = 0 if bits == DEFAULT_IPA_BITS else bits
        mmap_size = self.vcpu_mmap_size()
        fd = self.ioctl(Ioctl.KVM_CREATE_VM, machine_type, type=machine_type)
        vm = Vm(fd, mmap_size)
        try:
            for capability in self.vm_capabilities:
                vm.enable_cap(capability)
        except BaseException:
            vm.close()
            raise
        return vm
