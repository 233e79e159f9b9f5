"""Observe a machine: give its vCPUs, queues and interrupts their counters, and read them."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from vmm.closeable import Closeable
from vmm.kvm.exit_observer import ExitObserver
from vmm.kvm.fd import KvmError
from vmm.kvm.stats import Stats
from vmm.observe.counters import (
    Counters,
    InterruptCounters,
    QueueCounters,
    VcpuCounters,
    by_name,
)
from vmm.observe.trace import INTERRUPT_RECORDS, QUEUE_RECORDS, VCPU_RECORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm.kvm.vcpu import Vcpu
    from vmm.observe.names import Named
    from vmm.observe.trace import Trace
    from vmm.virtio.device import VirtioDevice
    from vmm.virtio.notify import Interrupt


class Observatory(Closeable):
    """The counters of one machine over all its power cycles.

    *names* returns what addresses are called now, as `vmm.observe.names.disjoint` does. With a
    *trace* everything is counted and recorded from power-on. Without one, exits are counted and
    chains are timed from the first call of `counters` on: until then that costs nothing.
    """

    def __init__(self, names: Callable[[], list[Named]], trace: Trace | None = None) -> None:
        self._names = names
        self._trace = trace
        if trace is not None:
            trace.names = names
        self._began: float | None = None
        self._devices: list[VirtioDevice] = []
        self._interrupts: list[tuple[str, Interrupt]] = []
        self._observers: list[ExitObserver] = []
        self._vcpus: Sequence[Vcpu] = ()
        self._stats: dict[int, Stats] = {}
        self._cycle = ExitStack()

    def add_devices(self, devices: Sequence[VirtioDevice]) -> None:
        """Observe the queues and interrupts of *devices*, which have their transports."""
        self._devices = list(devices)
        self._interrupts = [found for device in devices for found in _interrupts(device)]
        if self._trace is None:
            return
        for device in devices:
            for index, slot in enumerate(device.slots):
                label = f"{device.name} queue {index}"
                slot.observer.c.ring = self._trace.source(label, QUEUE_RECORDS)
                slot.observer.time()
        for name, interrupt in self._interrupts:
            interrupt.c.ring = self._trace.source(f"{name} interrupt", INTERRUPT_RECORDS)

    # --- power cycles -------------------------------------------------------------------------

    def power_on(self, vcpus: Sequence[Vcpu]) -> None:
        """Observe *vcpus* of a new power cycle, which do not run yet, until `power_off`."""
        self._vcpus = vcpus
        if self._trace is not None or self._began is not None:
            self._observe()

    def _observe(self) -> None:
        if self._began is None:
            self._began = time.monotonic()
        while len(self._observers) < len(self._vcpus):
            self._observers.append(self._observer(len(self._observers)))
        for vcpu, observer in zip(self._vcpus, self._observers, strict=False):
            vcpu.observe(observer)
            with suppress(KvmError, OSError):  # an old kernel, or no descriptors: ours go on
                self._stats[vcpu.id] = self._cycle.enter_context(Stats(vcpu))
        for device in self._devices:
            for slot in device.slots:
                slot.observer.time()

    def _observer(self, number: int) -> ExitObserver:
        observer = ExitObserver()
        if self._trace is not None:
            observer.c.ring = self._trace.source(f"vcpu{number}", VCPU_RECORDS)
        return observer

    def power_off(self) -> None:
        """Stop observing the power cycle's vCPUs: they are stopped, and will be closed."""
        if self._trace is not None and self._stats:
            counted = {f"vcpu{number}": stats.read() for number, stats in self._stats.items()}
            self._trace.mark("KVM's counters", counted)
        self._vcpus = ()
        self._stats.clear()
        self._cycle.close()

    # --- reading ------------------------------------------------------------------------------

    @property
    def counting(self) -> bool:
        """Whether exits are counted. The call of `counters` that begins it asks vCPUs of KVM."""
        return self._began is not None

    def counters(self) -> Counters:
        """Return the counters. The first call begins to count exits, unless a trace did."""
        if self._began is None and self._vcpus:
            self._observe()
        counts = [observer.counts() for observer in self._observers]
        return Counters(
            seconds=0.0 if self._began is None else time.monotonic() - self._began,
            vcpus=[
                VcpuCounters(
                    vcpu.id,
                    vcpu.exits,
                    vcpu.answered,
                    counted,
                    self._stats[vcpu.id].read() if vcpu.id in self._stats else {},
                )
                for vcpu, counted in zip(self._vcpus, counts, strict=False)
            ],
            addresses=by_name(counts, self._names()),
            queues=[
                QueueCounters(device.name, index, slot.observer.counts())
                for device in self._devices
                for index, slot in enumerate(device.slots)
            ],
            interrupts=[
                InterruptCounters(name, int(interrupt.c.raised))
                for name, interrupt in self._interrupts
            ],
        )

    def close(self) -> None:
        """Close KVM's counters. Idempotent."""
        self._cycle.close()


def _interrupts(device: VirtioDevice) -> Iterator[tuple[str, Interrupt]]:
    """Yield the interrupts that *device*'s queues raise, each once, with its name."""
    assert device.interrupts is not None, "a transport comes first"
    found: list[Interrupt] = []
    for index in range(len(device.slots)):
        interrupt = device.interrupts.of_queue(index)
        if interrupt not in found:
            found.append(interrupt)
            yield (device.name if index == 0 else f"{device.name} queue {index}"), interrupt
