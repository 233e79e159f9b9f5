"""One power cycle of a machine: its VM, from power-on to reset or power-off.

A reset is a new VM. KVM can reset a vCPU but not its GIC; only a VM that was never used is known
to be in the architecture's reset state.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from vmm import fdt
from vmm.arm64 import board, layout, processor, registers
from vmm.arm64.gic import Gic
from vmm.closeable import Closeable
from vmm.errors import UserError
from vmm.kvm.capability import Cap
from vmm.kvm.slots import MemorySlots
from vmm.machine import vcpu_thread
from vmm.machine.vcpu_thread import VcpuThread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmm.arm64.payload import Payload
    from vmm.bus import MmioBus
    from vmm.events import Events
    from vmm.fdt import Node
    from vmm.irq import SwitchableLine
    from vmm.kvm.exits import Debug, Exit
    from vmm.kvm.mmio_fastpath import MmioFastpath
    from vmm.kvm.system import System
    from vmm.kvm.vcpu import Vcpu
    from vmm.machine.address_space import AddressSpace
    from vmm.machine.pause import Pause
    from vmm.machine.vcpu_thread import Reason
    from vmm.state.baseline import Baseline


class PowerCycle(Closeable):
    """Own a VM with its memory slots, GIC, vCPUs and their threads. Use as a context manager.

    The vCPUs show *baseline*; None: all that the host has. Raises `UserError` for too many *cpus*
    and for registers of *baseline* that KVM refuses, `KvmError` for what else it refuses.
    """

    def __init__(
        self,
        system: System,
        space: AddressSpace,
        cpus: int,
        baseline: Baseline | None = None,
    ) -> None:
        self._space = space
        self._owned = ExitStack()
        self.threads: list[VcpuThread] = []
        self.vcpus: list[Vcpu] = []
        self.device_tree = b""
        """The device tree that the guest gets, flattened; empty before `load`."""
        self.cancel_waits: Callable[[], object] = lambda: None
        """Called while a vCPU is late to stop: end what it waits for inside an exit."""
        self.on_debug: Callable[[int, Debug], None] | None = None
        """Called in a vCPU's thread with its debug exits. Set it before `start`."""
        with ExitStack() as undo:
            undo.callback(self.close)
            self.vm = self._owned.enter_context(system.create_vm(space.end))
            self._check_cpus(cpus)
            self.slots = MemorySlots(self.vm)
            self._owned.callback(space.unplug)
            space.plug(self.slots)
            kinds = None if baseline is None else baseline.cpu.gic
            optional = None if baseline is None else baseline.cpu.features
            longest = None if baseline is None else baseline.vector_length
            self.gic = self._owned.enter_context(Gic(self.vm, cpus, kinds))
            self.model = processor.ProcessorModel(self.vm, optional, longest)
            for index in range(cpus):
                vcpu = self._owned.enter_context(self.vm.create_vcpu(index))
                self.model.initialise(vcpu, powered_off=index > 0)
                if baseline is not None:
                    baseline.apply(vcpu)
                self.vcpus.append(vcpu)
            self.gic.initialise()
            for vcpu in self.vcpus:
                self.model.initialise_pmu(vcpu)
            if self.vm.check_extension(Cap.ARM_NISV_TO_USER):
                self.vm.enable_cap(Cap.ARM_NISV_TO_USER)
            undo.pop_all()

    def _check_cpus(self, cpus: int) -> None:
        most = min(self.vm.check_extension(Cap.MAX_VCPUS), layout.GICV3_REDISTRIBUTORS_MAX)
        if cpus > most:
            raise UserError(
                f"--cpus: {cpus} vCPUs are more than the {most} that this host's KVM allows",
                f"use --cpus {most} or less",
            )

    def load(self, payload: Payload, nodes: Sequence[Node] = ()) -> None:
        """Load kernel, initrd and device tree into memory, and set the boot vCPU's registers.

        *nodes* are device tree nodes besides the board's. Raises `UserError` if something does
        not fit into RAM.
        """
        ram, memory = self._space.ram, self._space.memory
        plan = payload.place(ram)
        tree = board.device_tree(
            board.Board(
                ram=ram,
                mpidrs=[processor.affinity(vcpu) for vcpu in self.vcpus],
                interrupts=self.gic.node(),
                gic_version=self.gic.version,
                has_pmu=self.model.has_pmu,
                cmdline=payload.cmdline,
                initrd=plan.initrd,
                kaslr_seed=os.urandom(8),
                rng_seed=os.urandom(32),
                extra=[*self._space.nodes(), *nodes],
                numa_nodes=self._space.numa_nodes,
            )
        )
        if plan.kernel is not None and payload.kernel is not None:
            memory.write(plan.kernel.base, payload.kernel.payload)
        self.device_tree = fdt.dumps(tree)
        memory.write(plan.dtb.base, self.device_tree)
        if plan.initrd is not None and payload.initrd is not None:
            memory.write(plan.initrd.base, payload.initrd)
        values = {NAMED[name]: value for name, value in plan.registers.items()}
        processor.set_registers(self.vcpus[0], values)

    def at_end(self, callback: Callable[[], object]) -> None:
        """Call *callback* at `close`, after the vCPUs have stopped and before the VM goes.

        To be called before `start`.
        """
        self._owned.callback(callback)

    def start(  # noqa: PLR0913  (what vCPUs need of a machine)
        self,
        bus: MmioBus,
        fastpath: MmioFastpath,
        lines: Mapping[int, SwitchableLine],
        on_end: Callable[[int, Reason], None],
        events: Events,
        *,
        pause: Pause,
        on_exit: Callable[[int, Exit], None] | None = None,
    ) -> None:
        """Connect each of *lines*, by SPI, to the GIC, and start the vCPUs.

        They do not enter the guest while *pause* holds the machine. *on_exit* is told every exit:
        with it, none is answered in C.
        """
        for spi, line in lines.items():
            line.connect(self.gic.line(spi))
            self._owned.callback(line.connect, None)
        for vcpu in self.vcpus:
            vcpu.set_answers(fastpath if on_exit is None else None)
            self.threads.append(VcpuThread(vcpu, bus, on_end, events, on_exit))
            self.threads[-1].on_debug = self.on_debug
        self._owned.callback(pause.end)
        self._owned.callback(self._stop_threads)
        self._space.start()
        pause.begin(self)
        for thread in self.threads:
            thread.start()

    def _stop_threads(self) -> None:
        vcpu_thread.stop(self.threads, self.cancel_waits)

    def close(self) -> None:
        """Stop the vCPUs and destroy the VM. Idempotent. Raises `HostError` for a late vCPU."""
        self._owned.close()


NAMED: Final = {
    **{f"x{number}": registers.x(number) for number in range(4)},
    "pc": registers.PC,
    "pstate": registers.PSTATE,
}
"""Register ids by the names that `vmm.arm64.boot.BootPlan` uses."""
