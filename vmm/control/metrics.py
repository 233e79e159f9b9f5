"""A machine's counters for programs: Prometheus's text format, version 0.0.4, and JSON values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vmm.control.routes import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vmm.observe.counters import Counters

CONTENT: Final = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple["Mapping[str, object]", float]
"""Labels and a value."""


def text(counters: Counters, name: str, *, paused: bool) -> Text:
    """Return *counters* of the machine *name* as Prometheus reads them."""
    return Text("".join(f"{line}\n" for line in _lines(counters, name, paused=paused)), CONTENT)


def _lines(counters: Counters, name: str, *, paused: bool) -> Iterator[str]:
    vcpus = counters.vcpus
    families: list[tuple[str, str, str, Iterable[Sample]]] = [
        ("pyvmm_paused", "gauge", "1: the machine is paused.", [({}, paused)]),
        (
            "pyvmm_observed_seconds",
            "gauge",
            "Seconds for which exits are counted by reason: since the first look.",
            [({}, counters.seconds)],
        ),
        (
            "pyvmm_kvm_run_returns_total",
            "counter",
            "Returns from KVM_RUN in this power cycle.",
            [({"vcpu": one.vcpu}, one.exits) for one in vcpus],
        ),
        (
            "pyvmm_exits_total",
            "counter",
            "Returns from KVM_RUN by reason, since the first look.",
            [
                ({"vcpu": one.vcpu, "reason": reason}, count)
                for one in vcpus
                for reason, count in one.observed.reasons.items()
            ],
        ),
        (
            "pyvmm_kvm_stat",
            "gauge",
            "The kernel's own statistics of a vCPU (KVM_GET_STATS_FD).",
            [
                ({"vcpu": one.vcpu, "stat": stat}, value)
                for one in vcpus
                for stat, value in one.kvm.items()
            ],
        ),
        (
            "pyvmm_mmio_accesses_total",
            "counter",
            "MMIO exits by what is at the address.",
            [
                ({"at": at.name, "access": access}, count)
                for at in counters.addresses
                for access, count in (("load", at.loads), ("store", at.stores))
            ],
        ),
        (
            "pyvmm_queue_chains_total",
            "counter",
            "Buffers that a queue has used.",
            [({"device": q.device, "queue": q.number}, q.counts.chains) for q in counters.queues],
        ),
        (
            "pyvmm_queue_bytes_total",
            "counter",
            "Bytes that a queue has moved, from the driver (read) or to it (written).",
            [
                ({"device": q.device, "queue": q.number, "direction": direction}, count)
                for q in counters.queues
                for direction, count in (
                    ("read", q.counts.readable),
                    ("written", q.counts.written),
                )
            ],
        ),
        (
            "pyvmm_interrupts_total",
            "counter",
            "Interrupts that were raised.",
            [({"source": each.source}, each.raised) for each in counters.interrupts],
        ),
    ]
    for family, kind, what, samples in families:
        found = list(samples)
        if found:
            yield f"# HELP {family} {what}"
            yield f"# TYPE {family} {kind}"
        for labels, value in found:
            pairs = {"machine": name, **labels}.items()
            shown = ",".join(f'{label}="{_escaped(str(each))}"' for label, each in pairs)
            yield f"{family}{{{shown}}} {float(value):.17g}"


def _escaped(value: str) -> str:
    """Return a label's value as the format has it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def values(counters: Counters) -> dict[str, Any]:
    """Return *counters* as JSON values: what `pyvmm top` shows."""
    return {
        "seconds": counters.seconds,
        "vcpus": [
            {
                "vcpu": one.vcpu,
                "exits": one.exits,
                "answered": one.answered,
                "reasons": dict(one.observed.reasons),
                "kvm": dict(one.kvm),
            }
            for one in counters.vcpus
        ],
        "addresses": [each._asdict() for each in counters.addresses],
        "queues": [
            {"device": each.device, "number": each.number, **each.counts._asdict()}
            for each in counters.queues
        ],
        "interrupts": [each._asdict() for each in counters.interrupts],
    }
