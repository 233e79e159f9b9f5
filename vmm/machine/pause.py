"""Keep a machine still: no vCPU in the guest, no queue served, the guest's virtual time stopped.

    pause()   vCPUs leave KVM_RUN -> devices finish what they have -> the counter is noted
    resume()  the counter is set  -> devices serve their queues    -> vCPUs enter KVM_RUN

Several may hold a machine at once: gdb, a snapshot, a user. It goes on when the last one lets go.
A reset does not let go: the next power cycle begins held.

What goes on: the real time clock, as on a machine that sleeps; what the host sends, which waits in
devices' own buffers and in the kernel's; the DMA of a device that was passed through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from vmm.arm64.register_names import id_of
from vmm.errors import VmmError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.machine.vcpu_thread import VcpuThread


CNTVCT_EL0: Final = id_of("CNTVCT_EL0")
"""The virtual counter of all vCPUs of a VM: a store sets CNTVOFF_EL2."""


class Counted(Protocol):
    """The part of a vCPU that has the VM's virtual counter."""

    def get_one_reg(self, register: int, /) -> int:
        """Return a register."""

    def set_one_reg(self, register: int, value: int, /) -> None:
        """Set a register."""


class Held(Protocol):
    """A device that can be paused: `vmm.virtio.device.VirtioDevice`."""

    def pause(self) -> None:
        """Finish what was begun, and begin nothing until `resume`. Idempotent."""

    def resume(self) -> None:
        """Go on. Idempotent."""


class Cycle(Protocol):
    """A power cycle: `vmm.machine.power_cycle.PowerCycle`."""

    @property
    def threads(self) -> Sequence[VcpuThread]:
        """The threads of its vCPUs; none before it has started."""

    @property
    def vcpus(self) -> Sequence[Counted]:
        """Its vCPUs, which share one virtual counter."""


class Pause:
    """Count who holds a machine. Belongs to the loop's thread. *devices* returns its devices."""

    def __init__(self, devices: Callable[[], Sequence[Held]]) -> None:
        self._devices = devices
        self.holders = 0
        """How many hold the machine."""
        self._cycle: Cycle | None = None
        self._counter: int | None = None

    @property
    def held(self) -> bool:
        """Whether the machine is paused."""
        return self.holders > 0

    @property
    def counter(self) -> int | None:
        """The virtual counter at which the guest stands; None: it does not."""
        return self._counter

    def begin(self, cycle: Cycle) -> None:
        """Take *cycle*, whose vCPUs are about to start; while the machine is held, they wait."""
        self._cycle = cycle
        if self.held:
            for thread in cycle.threads:
                thread.pause()

    def end(self) -> None:
        """Forget the power cycle: its vCPUs have ended."""
        self._cycle = self._counter = None

    def pause(self) -> None:
        """Hold the machine. When this returns, nothing of it touches guest memory.

        Raises `HostError` if a vCPU does not leave the guest within `vcpu_thread.STOP_TIMEOUT`
        seconds; the machine is then not held, and goes on.
        """
        self.holders += 1
        if self.holders > 1 or self._cycle is None:
            return
        try:
            self._still(self._cycle)
        except VmmError:
            self.resume()
            raise

    def _still(self, cycle: Cycle) -> None:
        for thread in cycle.threads:
            thread.pause()
        for thread in cycle.threads:
            thread.wait_paused()
        for device in self._devices():
            device.pause()
        self._counter = cycle.vcpus[0].get_one_reg(CNTVCT_EL0)

    def resume(self) -> None:
        """Let go of the machine; after the last holder's call it goes on.

        Raises ValueError if nobody holds it.
        """
        if not self.held:
            raise ValueError("the machine is not paused")
        self.holders -= 1
        if self.held:
            return
        for device in self._devices():
            device.resume()
        if self._cycle is None:
            return
        if self._counter is not None:
            self._cycle.vcpus[0].set_one_reg(CNTVCT_EL0, self._counter)
            self._counter = None
        for thread in self._cycle.threads:
            thread.resume()
