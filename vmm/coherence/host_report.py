"""Report what a host's KVM can do: its capabilities, and facts about the host."""

from __future__ import annotations

import mmap
import os
import platform
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vmm._native import lib
from vmm.coherence import capability as coherence
from vmm.kvm.capability import Cap, capabilities
from vmm.kvm.fd import KvmError
from vmm.kvm.system import System

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Answer = int | None
"""What KVM_CHECK_EXTENSION returned; None: it failed (a capability that only a VM has)."""


@dataclass(frozen=True)
class Extension:
    """One KVM_CAP_*, with KVM_CHECK_EXTENSION's answers on /dev/kvm and on a VM."""

    number: int
    system: Answer
    vm: Answer


@dataclass(frozen=True)
class HostReport:
    """The report of `pyvmm probe`."""

    host: Mapping[str, str | int]
    coherence: coherence.HostCapability
    capabilities: Mapping[str, Extension]

    @classmethod
    def run(cls) -> HostReport:
        """Ask KVM. Raises `HostError` if there is none."""
        with System.open() as system, system.create_vm() as vm:
            answers = {
                name: Extension(
                    number, _ask(system.check_extension, number), _ask(vm.check_extension, number)
                )
                for name, number in capabilities().items()
            }
            found = coherence.HostCapability.probe(system)
        return cls(_host_facts(answers, found), found, answers)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "coherence": self.coherence.as_json()}

    def lines(self, *, everything: bool = False) -> list[str]:
        """Return lines of text; without *everything*, only capabilities that are not 0."""
        shown = {
            name: capability
            for name, capability in self.capabilities.items()
            if everything or capability.system or capability.vm
        }
        return [
            *(f"{name:20} {value}" for name, value in self.host.items()),
            "",
            *self.coherence.lines(),
            "",
            f"{'capability':44} {'number':>6} {'/dev/kvm':>9} {'VM':>9}",
            *(
                f"{name:44} {cap.number:6} {_shown(cap.system):>9} {_shown(cap.vm):>9}"
                for name, cap in shown.items()
            ),
            f"({len(shown)} of {len(self.capabilities)} capabilities that pyvmm knows)",
        ]


def _ask(check: Callable[[int], int], number: int) -> Answer:
    try:
        return check(number)
    except KvmError:
        return None


def _shown(answer: Answer) -> str:
    if answer is None:
        return "EINVAL"
    return str(answer) if answer < 1 << 16 else f"{answer:#x}"


def _host_facts(
    answers: Mapping[str, Extension], found: coherence.HostCapability
) -> dict[str, str | int]:
    facts: dict[str, str | int] = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count() or 1,
        "page_size": mmap.PAGESIZE,
    }
    if ctr := lib.pyvmm_ctr_el0():
        facts["CTR_EL0"] = f"{ctr:#x}"
        for name, there in (
            ("FWB", found.cpu.fwb),
            ("CTR_EL0.DIC", found.cpu.dic),
            ("CTR_EL0.IDC", found.cpu.idc),
        ):
            facts[name] = "unknown" if there is None else int(there)
        facts["dcache-line"] = 4 << (ctr >> 16 & 15)
    if ipa := answers["KVM_CAP_ARM_VM_IPA_SIZE"].system:
        facts["ipa-bits"] = ipa
    facts["max-vcpus"] = answers[f"KVM_CAP_{Cap.MAX_VCPUS.name}"].vm or 0
    return facts
