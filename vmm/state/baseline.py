"""A CPU that several hosts can show: the most that all have, over what KVM lets be written.

pyvmm compat baseline A.json B.json > FILE
pyvmm run --cpu-baseline FILE ...       at each of them: guests may then move both ways
"""

from __future__ import annotations

import json
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, Final

from vmm.arm64.id_registers import id_registers
from vmm.state.comparison import refused
from vmm.state.typed_json import Hex, encode
from vmm.state.visible_cpu import VisibleCpu, without

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm.state.comparison import Reason
    from vmm.state.host_description import HostDescription

FORMAT: Final = "pyvmm cpu baseline"
VERSION: Final = 1


def common(hosts: Sequence[HostDescription]) -> VisibleCpu:
    """Return the most that all of *hosts* can show; `obstacles` tells what they cannot agree on."""
    cpus = [host.cpu for host in hosts]
    first = cpus[0]
    lengths = _vector_lengths([cpu.sve_vector_lengths for cpu in cpus])
    features = tuple(
        name for name in _in_all(cpu.features for cpu in cpus) if name != "SVE" or lengths
    )
    return VisibleCpu(
        features=features,
        gic=_in_all(cpu.gic for cpu in cpus),
        ipa_bits=min(cpu.ipa_bits for cpu in cpus),
        counter_hz=first.counter_hz,
        sve_vector_lengths=lengths if "SVE" in features else (),
        firmware={
            name: Hex(_firmware(name, [cpu.firmware.get(name, 0) for cpu in cpus]))
            for name in first.firmware
        },
        registers=_registers(hosts, features),
    )


def obstacles(hosts: Sequence[HostDescription], cpu: VisibleCpu) -> list[tuple[int, Reason]]:
    """Return why hosts cannot show *cpu*, with the index of the host."""
    return [
        (index, reason)
        for index, host in enumerate(hosts)
        for reason in refused(host.cpu, host.changes, cpu)
    ]


def _registers(hosts: Sequence[HostDescription], features: tuple[str, ...]) -> dict[str, Hex]:
    shown = [without(host.cpu.registers, features) for host in hosts]
    found = {}
    for name in shown[0]:
        if not all(name in one for one in shown):
            continue
        writable = reduce(and_, ((host.changes.writable or {}).get(name, 0) for host in hosts))
        found[name] = Hex(id_registers()[name].common((one[name] for one in shown), writable))
    return found


def _firmware(name: str, values: Sequence[int]) -> int:
    return reduce(and_, values) if "_BMAP" in name else min(values)


def _in_all(sets: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    first, *rest = sets
    return tuple(one for one in first if all(one in other for other in rest))


def _vector_lengths(sets: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the longest beginning that all share: KVM can cut a set at its end alone."""
    for longest in reversed(sets[0]):
        cut = {tuple(length for length in one if length <= longest) for one in sets}
        if len(cut) == 1:
            return cut.pop()
    return ()


def text(cpu: VisibleCpu) -> str:
    """Return *cpu* as the JSON text of a baseline file."""
    value = {"format": FORMAT, "version": VERSION, "hash": cpu.hash, "cpu": encode(cpu)}
    return json.dumps(value, indent=1) + "\n"
