"""A VM's memory slots: which host mappings the guest sees, and where."""

from __future__ import annotations

import errno
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from vmm.address_range import AddressRange
from vmm.kvm.capability import Cap
from vmm.kvm.fd import KvmError
from vmm.kvm.ioctls import Ioctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.kvm.vm import Vm

FIRST_LIMIT = 32
"""Slots that every kernel has, even one without KVM_CAP_NR_MEMSLOTS."""


class MemorySlot(NamedTuple):
    """One slot as KVM knows it: addresses and size in bytes, flags KVM_MEM_*."""

    number: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int

    @property
    def addresses(self) -> AddressRange:
        """The guest physical addresses that the slot backs."""
        return AddressRange(self.guest_phys_addr, self.memory_size)

    def __str__(self) -> str:
        return f"slot {self.number} {self.addresses}"


def takes_slot(vm: Vm, slot: MemorySlot) -> bool:
    """Try *slot* on *vm*, a scratch VM; it stays there if it is taken. False: EINVAL.

    Raises `KvmError` for another errno.
    """
    try:
        vm.set_user_memory_region(*slot)
    except KvmError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


class MemorySlots:
    """Allocate a VM's slots and remember them. Thread-safe: guests move BARs while they run."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._limit = vm.check_extension(Cap.NR_MEMSLOTS) or FIRST_LIMIT
        self._slots: dict[int, MemorySlot] = {}
        self._lock = Lock()

    def __iter__(self) -> Iterator[MemorySlot]:
        with self._lock:
            return iter(sorted(self._slots.values(), key=lambda slot: slot.guest_phys_addr))

    def find(self, address: int) -> MemorySlot | None:
        """Return the slot that contains guest physical *address*, or None."""
        return next((slot for slot in self if slot.addresses.contains(address)), None)

    def add(self, base: int, size: int, host_address: int, flags: int = 0) -> MemorySlot:
        """Map *size* bytes at *host_address* of this process into the guest at *base*.

        Raises `KvmError`, with ENOSPC if every slot is taken.
        """
        with self._lock:
            number = next((n for n in range(self._limit) if n not in self._slots), None)
            if number is None:
                shown: dict[str, object] = {"slots": self._limit}
                raise KvmError(Ioctl.KVM_SET_USER_MEMORY_REGION, errno.ENOSPC, shown)
            self._vm.set_user_memory_region(number, flags, base, size, host_address)
            self._slots[number] = MemorySlot(number, int(flags), base, size, host_address)
            return self._slots[number]

    def set_flags(self, slot: MemorySlot, flags: int) -> MemorySlot:
        """Give *slot* other KVM_MEM_* *flags*, even while the guest runs. Raises `KvmError`."""
        with self._lock:
            new = slot._replace(flags=int(flags))
            self._vm.set_user_memory_region(*new)
            self._slots[slot.number] = new
            return new

    def remove(self, slot: MemorySlot) -> None:
        """Delete *slot*, even while the guest runs. Its host memory may be unmapped then."""
        with self._lock:
            self._vm.set_user_memory_region(
                slot.number, 0, slot.guest_phys_addr, 0, slot.userspace_addr
            )
            del self._slots[slot.number]
