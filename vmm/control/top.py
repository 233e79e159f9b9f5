"""The screen of `pyvmm top`: what a machine did between two looks, by the second."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

KVM_SHOWN: Final = ("exits", "wfi_exit_stat", "mmio_exit_kernel", "hvc_exit_stat")
"""KVM's own counters that are shown for a vCPU, if the kernel has them."""

NARROWEST, WIDEST = 24, 48
"""Columns of a table's names: three numbers fit beside them on a terminal of 80."""

Look = dict[str, Any]
"""What ``GET /counters`` answers."""


def screen(before: Look, now: Look, seconds: float, size: tuple[int, int]) -> list[str]:
    """Return the lines that fit *size*, columns and rows: rates over *seconds*."""
    columns, rows = size
    lines = [_cut(line.rstrip(), columns) for line in _lines(before, now, seconds)]
    return lines[:rows]


def _lines(before: Look, now: Look, seconds: float) -> Iterator[str]:
    status = now["status"]
    up = int(status["uptime"])
    rates = partial(_rates, (before, now), seconds)
    exits = rates("vcpus", ("vcpu",), "exits")
    yield (
        f"{status['name']}: {status['state']}, up {up // 3600}:{up // 60 % 60:02}:{up % 60:02}, "
        f"{status['cpus']} vCPUs, {status['memory'] >> 20} MiB; "
        f"{sum(exits.values()):.0f} exits/s to pyvmm"
    )
    yield ""
    yield f"{'VCPU':<5} {'EXITS/S':>9} {'IN C/S':>9} {'KVM/S':>9}  REASONS"
    answered = rates("vcpus", ("vcpu",), "answered")
    for one in now["vcpus"]:
        number = one["vcpu"]
        past = _find(before, number)
        kvm = _changes(past.get("kvm", {}), one["kvm"], seconds)
        reasons = _changes(past.get("reasons", {}), one["reasons"], seconds)
        own = [f"{name} {rate:.0f}" for name, rate in reasons.most_common() if rate >= 0.5]
        deep = [f"kvm:{name} {kvm[name]:.0f}" for name in KVM_SHOWN[1:] if kvm[name] >= 0.5]
        yield (
            f"{number:<5} {exits[number,]:>9.0f} {answered[number,]:>9.0f} "
            f"{kvm[KVM_SHOWN[0]]:>9.0f}  {', '.join([*own, *deep])}"
        )
    yield from _addresses(before, now, seconds)
    yield from _queues(before, now, seconds)


def _addresses(before: Look, now: Look, seconds: float) -> Iterator[str]:
    rates = partial(_rates, (before, now), seconds)
    loads, stores, answered = (
        rates("addresses", ("name",), what) for what in ("loads", "stores", "answered")
    )
    busy = sorted(loads, key=lambda name: -loads[name] - stores[name])
    rows = [
        (name[0], *(f"{counted[name]:.0f}" for counted in (loads, stores, answered)))
        for name in busy
    ]
    yield from _table(("DEVICE", "LOADS/S", "STORES/S", "IN C/S"), rows)


def _queues(before: Look, now: Look, seconds: float) -> Iterator[str]:
    key = ("device", "number")
    rates = partial(_rates, (before, now), seconds)
    chains, read, written = (
        rates("queues", key, what) for what in ("chains", "readable", "written")
    )
    raised = rates("interrupts", ("source",), "raised")
    used = {(each["device"], each["number"]) for each in now["queues"] if each["chains"]}
    rows = [
        (
            f"{name[0]} queue {name[1]}",
            f"{chains[name]:.0f}",
            _bytes(read[name]),
            _bytes(written[name]),
        )
        for name in chains
        if name in used
    ]
    yield from _table(("QUEUE", "CHAINS/S", "READ/S", "WRITTEN/S"), rows)
    if any(raised.values()):
        told = [f"{name[0]} {rate:.0f}" for name, rate in raised.items() if rate >= 0.5]
        yield ""
        yield f"interrupts/s: {', '.join(told)}"


def _table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield *rows*, if there are any, under *heading*: a name, then numbers, each in a column."""
    if not rows:
        return
    width = min(max(NARROWEST, *(len(row[0]) for row in rows)), WIDEST)
    yield ""
    for name, *numbers in (heading, *rows):
        yield f"{_cut(name, width):<{width}}" + "".join(f" {number:>9}" for number in numbers)


def _cut(text: str, columns: int) -> str:
    """Return what of *text* fits, and "…" if that is not all: half a number is another one."""
    return text if len(text) <= columns else text[: columns - 1] + "…"


def _find(look: Look, number: int) -> Mapping[str, Any]:
    return next((one for one in look["vcpus"] if one["vcpu"] == number), {})


def _changes(past: Mapping[str, int], new: Mapping[str, int], seconds: float) -> Counter[str]:
    """Return rates by name; a counter that fell was reset, and counts from zero."""
    found: Counter[str] = Counter()
    for name, value in new.items():
        began = past.get(name, 0)
        found[name] = (value - (began if began <= value else 0)) / seconds  # type: ignore[assignment]
    return found


def _rates(
    looks: tuple[Look, Look], seconds: float, table: str, key: tuple[str, ...], what: str
) -> dict[tuple[Any, ...], float]:
    """Return the rates of counter *what* in *table* between two looks, by its rows' *key*."""
    before, now = looks
    past = {tuple(row[name] for name in key): row[what] for row in before[table]}
    found = {}
    for row in now[table]:
        name = tuple(row[each] for each in key)
        began = past.get(name, 0)
        found[name] = (row[what] - (began if began <= row[what] else 0)) / seconds
    return found


def _bytes(number: float) -> str:
    for unit in ("B", "K", "M"):
        if number < 10000:
            return f"{number:.0f}{unit}"
        number /= 1024
    return f"{number:.0f}G"
