"""Run in a lab host: print what KVM on arm64 does with our routes and irqfds, as JSON.

No guest runs, so the ITS delivers nothing; whether KVM takes what an eventfd was signalled shows
in the eventfd.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack
from errno import errorcode

from vmm.arm64 import layout, pcie
from vmm.arm64.gic import Gic
from vmm.arm64.processor import ProcessorModel
from vmm.events import Events
from vmm.kvm.fd import KvmError
from vmm.kvm.irq_routing import GSIS, IrqRouting
from vmm.kvm.system import System
from vmm.kvm.vm import MsiRoute, Vm
from vmm.pci.msix import Message

PATIENCE = 10.0


def signalled(fd: int) -> bool:
    """Signal *fd*; tell whether the count stays in it, because nobody consumed it."""
    os.eventfd_write(fd, 1)
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        try:
            value = os.eventfd_read(fd)
        except BlockingIOError:
            return False
        os.eventfd_write(fd, value)
        time.sleep(0.01)
        if time.monotonic() > ends - PATIENCE + 0.5:
            return True
    return True


def limit(vm: Vm) -> list[str]:
    """Return KVM's results for the last interrupt number that we use, and for the next."""
    said = []
    for gsi in (GSIS - 1, GSIS):
        try:
            vm.set_gsi_routing([MsiRoute(gsi, layout.GITS_TRANSLATER, 0, 8)])
            said.append("ok")
        except KvmError as error:
            said.append(errorcode[error.errno])
    return said


def measure(vm: Vm, owned: ExitStack) -> dict[str, object]:
    def eventfd() -> int:
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        owned.callback(os.close, fd)
        return fd

    found: dict[str, object] = {"limit": limit(vm)}
    table = IrqRouting([pcie.spi(1)], layout.SPI_COUNT, Events())
    table.connect(vm, layout.GITS_TRANSLATER)
    function, fd = table.function("test"), eventfd()
    function.requester = 8
    function.attach(0, fd)
    message = Message(layout.GITS_TRANSLATER, 5)
    stays, pending = [], []
    for wanted in (None, message, None, message, None):
        function.update({0: wanted})
        pending.append(function.pending(0) if wanted is None else None)
        stays.append(signalled(fd))
    found["stays"] = stays
    found["pending"] = pending
    trigger, resample = eventfd(), eventfd()
    vm.irqfd(trigger, pcie.spi(1), resamplefd=resample)
    found["pin"] = signalled(trigger)
    function.update({0: message})
    second = eventfd()
    function.attach(0, second)
    found["shared"] = signalled(second)
    function.detach(second)
    found["detached"] = signalled(second)
    return found


def main() -> None:
    """Measure in a VM with a GICv3 and its ITS."""
    with ExitStack() as owned:
        system = owned.enter_context(System.open())
        vm = owned.enter_context(system.create_vm())
        gic = owned.enter_context(Gic(vm, 1))
        vcpu = owned.enter_context(vm.create_vcpu(0))
        ProcessorModel(vm).initialise(vcpu, powered_off=False)
        gic.initialise()
        json.dump(measure(vm, owned), sys.stdout)


main()
