"""The counters of a machine at one time, as values and as lines for the user."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.observe.names import NOTHING, find

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vmm.kvm.exit_observer import ExitCounts
    from vmm.observe.names import Named
    from vmm.virtio.queue_observer import QueueCounts

KVM_SHOWN: Final = (
    "exits",
    "mmio_exit_user",
    "mmio_exit_kernel",
    "wfi_exit_stat",
    "wfe_exit_stat",
    "hvc_exit_stat",
    "signal_exits",
    "halt_successful_poll",
    "halt_wakeup",
)
"""KVM's counters that `Counters.lines` shows, if the kernel has them."""


class VcpuCounters(NamedTuple):
    """One vCPU.

    exits     returns from KVM_RUN in this power cycle; *answered* of them C has answered
    observed  exits by reason and address, since the machine is observed
    kvm       KVM's own counters in this power cycle, by the kernel's names; {}: an old kernel
    """

    vcpu: int
    exits: int
    answered: int
    observed: ExitCounts
    kvm: Mapping[str, int]


class AddressCounters(NamedTuple):
    """MMIO exits at what is called *name*; *answered* of them in C."""

    name: str
    loads: int
    stores: int
    answered: int


class QueueCounters(NamedTuple):
    """Queue *number* of *device*."""

    device: str
    number: int
    counts: QueueCounts


class InterruptCounters(NamedTuple):
    """How often *source* has raised its interrupt."""

    source: str
    raised: int


class Counters(NamedTuple):
    """A machine's counters. *seconds*: how long exits are counted."""

    seconds: float
    vcpus: list[VcpuCounters]
    addresses: list[AddressCounters]
    queues: list[QueueCounters]
    interrupts: list[InterruptCounters]

    def lines(self) -> list[str]:
        """Return tables for the user; what is zero is left out."""
        return list(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"exits to pyvmm, counted for {self.seconds:.1f} s:"
        for vcpu in self.vcpus:
            reasons = ", ".join(f"{name} {n}" for name, n in _most(vcpu.observed.reasons))
            yield f"  vcpu{vcpu.vcpu:<3} {vcpu.observed.total:>10}  {reasons}"
        if any(vcpu.kvm for vcpu in self.vcpus):
            yield "KVM's own counters since power-on:"
        for vcpu in self.vcpus:
            shown = [f"{name} {vcpu.kvm[name]}" for name in KVM_SHOWN if vcpu.kvm.get(name)]
            yield f"  vcpu{vcpu.vcpu:<3} {', '.join(shown)}"
        if self.addresses:
            yield f"  {'at':<24} {'loads':>10} {'stores':>10} {'in C':>10}"
        for at in self.addresses:
            yield f"  {at.name:<24} {at.loads:>10} {at.stores:>10} {at.answered:>10}"
        busy = [queue for queue in self.queues if queue.counts.chains]
        if busy:
            yield f"  {'queue':<24} {'chains':>10} {'read':>10} {'written':>10} {'us each':>10}"
        for queue in busy:
            chains, readable, written, service = queue.counts
            name = f"{queue.device} queue {queue.number}"
            each = service / chains * 1e6
            yield f"  {name:<24} {chains:>10} {readable:>10} {written:>10} {each:>10.1f}"
        raised = [f"{source} {count}" for source, count in self.interrupts if count]
        if raised:
            yield f"interrupts raised: {', '.join(raised)}"


def by_name(counts: Iterable[ExitCounts], named: list[Named]) -> list[AddressCounters]:
    """Return MMIO exits of all vCPUs by the names of addresses, the most frequent first."""
    loads: Counter[str] = Counter()
    stores: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    for each in counts:
        for block in each.blocks:
            name = find(named, block.base)
            loads[name] += block.loads
            stores[name] += block.stores
            answered[name] += block.answered
        if each.elsewhere:
            loads[f"{NOTHING}, or elsewhere"] += each.elsewhere
    found = [
        AddressCounters(name, loads[name], stores[name], answered[name])
        for name in {**loads, **stores}
    ]
    return sorted(found, key=lambda at: (-at.loads - at.stores, at.name))


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])
