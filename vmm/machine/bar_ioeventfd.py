"""ioeventfds of a virtio-pci device's notify structure, at the address the guest gives its BAR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.kvm.fd import KvmError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.kvm.vm import Vm
    from vmm.virtio.notify import Ioeventfd


class BarIoeventfds:
    """The *ioeventfds* of a BAR in the VM that *vm* returns; none while it returns None."""

    def __init__(self, ioeventfds: Sequence[Ioeventfd], vm: Callable[[], Vm | None]) -> None:
        self._ioeventfds = ioeventfds
        self._vm = vm
        self._there: list[Ioeventfd] = []
        """Those registered, with guest physical addresses for offsets."""

    def on_map(self, base: int) -> None:
        """Register all at *base*. Raises `KvmError`; then none is registered, and stores trap."""
        if (vm := self._vm()) is None:
            return
        try:
            for each in self._ioeventfds:
                address = base + each.offset
                vm.ioeventfd(address, each.width, each.fd, datamatch=each.datamatch)
                self._there.append(each._replace(offset=address))
        except KvmError:
            self.on_unmap()
            raise

    def on_unmap(self) -> None:
        """Deassign all. If the VM is gone, KVM has forgotten them already."""
        vm = self._vm()
        while self._there:
            address, width, fd, datamatch = self._there.pop()
            if vm is not None:
                vm.ioeventfd(address, width, fd, datamatch=datamatch, deassign=True)
