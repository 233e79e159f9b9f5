"""Notifications of a virtio-pci device that KVM does, wherever the guest has its BAR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.kvm.fd import KvmError
from vmm.virtio.transport.pci import NOTIFY_WIDTH

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.kvm.vm import Vm
    from vmm.virtio.transport.pci import Notification


class BarIoeventfds:
    """The ioeventfds of *bells* in the VM that *vm* returns; none while it returns None."""

    def __init__(self, bells: Sequence[Notification], vm: Callable[[], Vm | None]) -> None:
        self._bells = bells
        self._vm = vm
        self._there: list[tuple[int, int]] = []

    def on_map(self, base: int) -> None:
        """Have KVM do them at *base*. Raises `KvmError`; then it does none, and all trap."""
        if (vm := self._vm()) is None:
            return
        try:
            for bell in self._bells:
                vm.ioeventfd(base + bell.offset, NOTIFY_WIDTH, bell.fd)
                self._there.append((base + bell.offset, bell.fd))
        except KvmError:
            self.on_unmap()
            raise

    def on_unmap(self) -> None:
        """Have KVM do none any more; if the VM has gone, it has gone with them."""
        vm = self._vm()
        while self._there:
            address, fd = self._there.pop()
            if vm is not None:
                vm.ioeventfd(address, NOTIFY_WIDTH, fd, deassign=True)
