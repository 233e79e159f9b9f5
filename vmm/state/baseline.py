"""A CPU that several hosts can show: the most that all have, over what KVM lets be written.

    pyvmm compat baseline A.json B.json > FILE
    pyvmm run --cpu-baseline FILE ...            at each of them

Guests that start with it at any of the hosts can move to each other one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, Final

from vmm.arm64 import registers
from vmm.arm64.id_registers import field_of, id_registers
from vmm.errors import UserError
from vmm.kvm.fd import KvmError
from vmm.state.comparison import refused
from vmm.state.host_description import look
from vmm.state.visible_cpu import FOLLOWS, VisibleCpu, without
from vmm.typed_json import Hex, decode, encode, load

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from vmm.kvm.system import System
    from vmm.kvm.vcpu import Vcpu
    from vmm.state.comparison import Reason
    from vmm.state.host_description import HostDescription

FORMAT: Final = "pyvmm cpu baseline"
VERSION: Final = 1
HINT: Final = "pyvmm compat baseline makes one for this host and others"


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
            name: _firmware(name, [cpu.firmware.get(name, 0) for cpu in cpus])
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
        found[name] = id_registers()[name].common((one[name] for one in shown), writable)
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
    value = {"format": FORMAT, "version": VERSION, "cpu": encode(cpu)}
    return json.dumps(value, indent=1) + "\n"


@dataclass(frozen=True)
class Baseline:
    """The CPU that a machine shows, from the file *path*."""

    path: Path
    cpu: VisibleCpu

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Read a file of `text`. Raises `UserError`, which names the member at fault."""
        value = load(path, FORMAT, VERSION)
        cpu = decode(VisibleCpu, value.get("cpu"), f"{path}.cpu")
        cpu.check(f"{path}.cpu")
        return cls(path, cpu)

    @property
    def vector_length(self) -> int:
        """The longest SVE vector in bytes."""
        return max(self.cpu.sve_vector_lengths, default=0)

    def check(self, system: System, end: int) -> None:
        """Raise `UserError` if this host cannot show it, by a scratch VM that is asked.

        *end* is the first address past everything in the machine.
        """
        if (end - 1).bit_length() > self.cpu.ipa_bits:
            raise UserError(
                f"--cpu-baseline {self.path}: the machine ends at {end:#x}, past the "
                f"{self.cpu.ipa_bits} bits of address that all hosts have",
                "use less --memory, or leave the host with the fewest out of the baseline",
            )
        with system.create_vm() as vm:
            there, changes = look(vm, system.ipa_bits())
        reasons = refused(there, changes, self.cpu)
        if reasons:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            raise UserError(
                f"--cpu-baseline {self.path}: this host cannot show it: {reasons[0]}{more}", HINT
            )

    def apply(self, vcpu: Vcpu) -> None:
        """Make *vcpu* show the ID registers and firmware, before any vCPU runs.

        Features, vector lengths and the GIC are chosen when the vCPU and the GIC are made; KVM sets
        the fields that tell of the GIC. Raises `UserError` if KVM refuses a register.
        """
        for name, register, now, value in self.writes(vcpu):
            try:
                vcpu.set_one_reg(register, value)
            except KvmError as error:
                raise UserError(
                    f"--cpu-baseline {self.path}: KVM refuses {name} = {value:#x}, where this host "
                    f"has {now:#x}",
                    HINT,
                ) from error

    def writes(self, vcpu: Vcpu) -> Iterator[tuple[str, int, int, int]]:
        """Yield the registers that `apply` writes: name, id, the value now and the one to be."""
        for name, wanted in self.cpu.registers.items():
            register = id_registers()[name].id
            now = vcpu.get_one_reg(register)
            if (value := _with_gic(name, wanted, now)) != now:
                yield name, register, now, value
        for name, wanted in self.cpu.firmware.items():
            register = registers.FIRMWARE[name]
            try:
                now = vcpu.get_one_reg(register)
            except KvmError:
                # An older kernel has none of what this register tells of.
                now = 0
            if now != wanted:
                yield f"KVM_REG_ARM_{name}", register, now, wanted


def _with_gic(register: str, wanted: int, now: int) -> int:
    """Return *wanted* with the fields of *now* that tell of the VM's GIC."""
    for follower in FOLLOWS["GIC"]:
        name, _, field = follower.partition(".")
        if name == register:
            one = field_of(name, field)
            wanted = one.put(wanted, one.get(now))
    return wanted
