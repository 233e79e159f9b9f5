"""A virtual machine: its memory slots, interrupts, events, devices and vCPUs."""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm._native import ffi, lib
from vmm.fd import Fd
from vmm.kvm.capability import Cap
from vmm.kvm.device import Device
from vmm.kvm.fd import KvmFd
from vmm.kvm.ioctls import Ioctl
from vmm.kvm.vcpu import Vcpu

if TYPE_CHECKING:
    from collections.abc import Sequence


ID_REGISTERS = 1 << lib.KVM_ARM_FEATURE_ID_RANGE
"""The range of registers in the answer of KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES."""


class MemFlag(IntFlag):
    """Flags of a memory slot, KVM_MEM_*.

    ``WRITE_BACK`` is a proposal that no released kernel has. Other kernels use its bit for other
    things, so never set it on a guest's slot as a test: see `vmm.coherence`.
    """

    LOG_DIRTY_PAGES = lib.KVM_MEM_LOG_DIRTY_PAGES
    READONLY = lib.KVM_MEM_READONLY
    GUEST_MEMFD = lib.KVM_MEM_GUEST_MEMFD
    WRITE_BACK = lib.PYVMM_MEM_WRITE_BACK


class MsiRoute(NamedTuple):
    """Interrupt *gsi* is a message: *data* written to *address*, by PCI function *devid*."""

    gsi: int
    address: int
    data: int
    devid: int | None = None


class PinRoute(NamedTuple):
    """Interrupt *gsi* is input *pin* of the in-kernel interrupt controller *irqchip*."""

    gsi: int
    pin: int
    irqchip: int = 0


class Vm(KvmFd):
    """A VM's file descriptor."""

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        super().__init__(fd)
        self._vcpu_mmap_size = vcpu_mmap_size

    def check_extension(self, capability: int) -> int:
        """Return this VM's value of *capability*: 0 is no, others depend on the capability."""
        return self.ioctl(Ioctl.KVM_CHECK_EXTENSION, capability, capability=int(capability))

    def enable_cap(self, capability: int, *args: int) -> None:
        """Enable *capability* with *args*. Raises `KvmError`."""
        self.ioctl_struct(Ioctl.KVM_ENABLE_CAP, "kvm_enable_cap", cap=int(capability), args=args)

    # --- memory ---------------------------------------------------------------------------

    def set_user_memory_region(
        self, slot: int, flags: int, guest_phys_addr: int, memory_size: int, userspace_addr: int
    ) -> None:
        """Set memory slot *slot*: *memory_size* bytes at *userspace_addr* of this process.

        A size of 0 deletes the slot. Addresses and sizes are multiples of the host's page. Raises
        `KvmError`.
        """
        self.ioctl_struct(
            Ioctl.KVM_SET_USER_MEMORY_REGION,
            "kvm_userspace_memory_region",
            slot=slot,
            flags=int(flags),
            guest_phys_addr=guest_phys_addr,
            memory_size=memory_size,
            userspace_addr=userspace_addr,
        )

    def set_user_memory_region2(  # noqa: PLR0913  (the kernel's struct has as many)
        self,
        slot: int,
        flags: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
        *,
        guest_memfd: int = 0,
        guest_memfd_offset: int = 0,
    ) -> None:
        """Set a slot as `set_user_memory_region` does, with newer flags (KVM_CAP_USER_MEMORY2)."""
        self.ioctl_struct(
            Ioctl.KVM_SET_USER_MEMORY_REGION2,
            "kvm_userspace_memory_region2",
            slot=slot,
            flags=int(flags),
            guest_phys_addr=guest_phys_addr,
            memory_size=memory_size,
            userspace_addr=userspace_addr,
            guest_memfd_offset=guest_memfd_offset,
            guest_memfd=guest_memfd,
        )

    def get_dirty_log(self, slot: int, pages: int) -> bytearray:
        """Return the pages of *slot* written since the last call: bit n of byte m is page 8m + n.

        *pages* is the slot's size in host pages. The result is a multiple of 8 bytes. Raises
        `KvmError`.
        """
        bitmap = bytearray((pages + 63) // 64 * 8)
        self.ioctl_struct(
            Ioctl.KVM_GET_DIRTY_LOG,
            "kvm_dirty_log",
            slot=slot,
            dirty_bitmap=ffi.from_buffer("void *", bitmap, require_writable=True),
        )
        return bitmap

    def clear_dirty_log(self, slot: int, first: int, pages: int, bitmap: Any) -> None:
        """Let KVM tell of further stores to those pages of *slot* that are set in *bitmap*.

        *bitmap* points to ``uint64_t``; its bit 0 is page *first*. *first* is a multiple of 64, and
        so is *pages*, except at the slot's end (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2). Raises
        `KvmError`.
        """
        self.ioctl_struct(
            Ioctl.KVM_CLEAR_DIRTY_LOG,
            "kvm_clear_dirty_log",
            slot=slot,
            num_pages=pages,
            first_page=first,
            dirty_bitmap=bitmap,
        )

    def create_guest_memfd(self, size: int, flags: int = 0) -> Fd:
        """Create guest-private memory of *size* bytes (KVM_CAP_GUEST_MEMFD). Raises `KvmError`."""
        arg = ffi.new("struct kvm_create_guest_memfd *", {"size": size, "flags": flags})
        return Fd(self.ioctl(Ioctl.KVM_CREATE_GUEST_MEMFD, arg, size=size, flags=flags))

    # --- events and interrupts --------------------------------------------------------------

    def ioeventfd(
        self,
        address: int,
        length: int,
        fd: int,
        *,
        datamatch: int | None = None,
        deassign: bool = False,
    ) -> None:
        """Let a guest's store to *address* add one to eventfd *fd* without an exit.

        *length* is 1, 2, 4 or 8 bytes, or 0 for any. With *datamatch* only stores of that value
        count. Raises `KvmError`.
        """
        flags = lib.KVM_IOEVENTFD_FLAG_DEASSIGN if deassign else 0
        if datamatch is not None:
            flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
        self.ioctl_struct(
            Ioctl.KVM_IOEVENTFD,
            "kvm_ioeventfd",
            datamatch=datamatch or 0,
            addr=address,
            len=length,
            fd=fd,
            flags=flags,
        )

    def irqfd(
        self, fd: int, gsi: int, *, resamplefd: int | None = None, deassign: bool = False
    ) -> None:
        """Let eventfd *fd* raise interrupt *gsi*.

        With *resamplefd* the interrupt is a level: KVM holds it until the guest's end of interrupt,
        and then signals *resamplefd*. Raises `KvmError`.
        """
        flags = lib.KVM_IRQFD_FLAG_DEASSIGN if deassign else 0
        if resamplefd is not None:
            flags |= lib.KVM_IRQFD_FLAG_RESAMPLE
        self.ioctl_struct(
            Ioctl.KVM_IRQFD,
            "kvm_irqfd",
            fd=fd,
            gsi=gsi,
            flags=flags,
            resamplefd=resamplefd or 0,
        )

    def irq_line(self, irq: int, level: int) -> None:
        """Drive an input of the in-kernel interrupt controller; *irq* is arch-specific."""
        self.ioctl_struct(Ioctl.KVM_IRQ_LINE, "kvm_irq_level", irq=irq, level=level)

    def set_gsi_routing(self, routes: Sequence[MsiRoute | PinRoute]) -> None:
        """Replace the whole interrupt routing table. Raises `KvmError`."""
        table = ffi.new("struct kvm_irq_routing *", {"nr": len(routes), "entries": len(routes)})
        for entry, route in zip(table.entries[0 : len(routes)], routes, strict=True):
            entry.gsi = route.gsi
            if isinstance(route, PinRoute):
                entry.type = lib.KVM_IRQ_ROUTING_IRQCHIP
                entry.u.irqchip.irqchip, entry.u.irqchip.pin = route.irqchip, route.pin
            else:
                entry.type = lib.KVM_IRQ_ROUTING_MSI
                _fill_msi(entry.u.msi, route)
                entry.flags = 0 if route.devid is None else lib.KVM_MSI_VALID_DEVID
        self.ioctl(Ioctl.KVM_SET_GSI_ROUTING, table, nr=len(routes))

    # --- what a VM is made of ---------------------------------------------------------------

    def create_device(self, kind: int) -> Device:
        """Create an in-kernel device, KVM_DEV_TYPE_*. Raises `KvmError`."""
        arg = self.ioctl_struct(Ioctl.KVM_CREATE_DEVICE, "kvm_create_device", type=kind)
        return Device(arg.fd)

    def can_create_device(self, kind: int) -> bool:
        """Return whether `create_device` knows *kind*, without creating anything."""
        arg = ffi.new(
            "struct kvm_create_device *", {"type": kind, "flags": lib.KVM_CREATE_DEVICE_TEST}
        )
        return self.try_ioctl(Ioctl.KVM_CREATE_DEVICE, arg) >= 0

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """Create the vCPU *vcpu_id*. Raises `KvmError`."""
        fd = self.ioctl(Ioctl.KVM_CREATE_VCPU, vcpu_id, vcpu_id=vcpu_id)
        return Vcpu(fd, vcpu_id, self._vcpu_mmap_size)

    def id_register_masks(self) -> list[int] | None:
        """Return which bits of ID registers KVM lets userspace write (arm64); None: it cannot tell.

        There is a mask for each encoding of op1 0, 1 and 3, CRm and op2, in that order. Linux tells
        since 6.7 (KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES). Raises `KvmError`.
        """
        if not self.check_extension(Cap.ARM_SUPPORTED_REG_MASK_RANGES) & ID_REGISTERS:
            return None
        masks = ffi.new("uint64_t[]", lib.KVM_ARM_FEATURE_ID_RANGE_SIZE)
        self.ioctl_struct(
            Ioctl.KVM_ARM_GET_REG_WRITABLE_MASKS,
            "reg_mask_range",
            addr=int(ffi.cast("uintptr_t", masks)),
            range=lib.KVM_ARM_FEATURE_ID_RANGE,
        )
        return list(masks)

    def preferred_target(self) -> Any:
        """Return a ``struct kvm_vcpu_init`` for the host's CPU, without features (arm64)."""
        return self.ioctl_struct(Ioctl.KVM_ARM_PREFERRED_TARGET, "kvm_vcpu_init")


def _fill_msi(msi: Any, route: MsiRoute) -> None:
    msi.address_lo = route.address & 0xFFFF_FFFF
    msi.address_hi = route.address >> 32
    msi.data = route.data
    msi.devid = route.devid or 0
