"""Execute one instruction of one vCPU, by KVM_GUESTDBG_SINGLESTEP."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING

from vmm.errors import UserError
from vmm.kvm.vcpu import GuestDebug

if TYPE_CHECKING:
    from vmm.machine.machine import Machine
    from vmm.machine.power_cycle import PowerCycle


class Step:
    """One instruction of vCPU *number* of *machine*, which one holder has paused.

    In the loop's thread. `over` is set once the instruction was executed; `end` has to follow in
    any case. Raises `UserError` if somebody else holds the machine or debugs it.
    """

    def __init__(self, machine: Machine, power: PowerCycle, number: int) -> None:
        self.over = Event()
        self._machine, self._power, self._number = machine, power, number
        thread = power.threads[number]
        if thread.on_debug is not None:
            raise UserError("a debugger has the vCPUs", "step there, or detach it")
        if machine.holders > 1:
            raise UserError("the machine is paused by somebody else, too", "resume it there")
        power.vcpus[number].set_guest_debug(GuestDebug(step=True))
        thread.on_debug = lambda *_: self.over.set()
        for other in power.threads:
            if other is not thread:
                other.hold()
        machine.resume()

    def end(self) -> None:
        """Pause the machine again, as it was. Raises `HostError` if a vCPU does not leave."""
        self._machine.pause()
        if self._machine.power is not self._power:
            return  # the guest has ended meanwhile
        self._power.threads[self._number].on_debug = None
        self._power.vcpus[self._number].set_guest_debug(GuestDebug())
        for thread in self._power.threads:
            thread.release()
