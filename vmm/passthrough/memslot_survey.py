"""Survey one host: register each kind of memory, with the flag and without, and prove its type.

All slots are scratch VMs'. On a legacy kernel some rows are the mappings that
`vmm.coherence.policy` prevents; here they are made on purpose, to be shown.
"""

from __future__ import annotations

import errno
import json
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmm.coherence.capability import HostCapability
from vmm.coherence.prove import observe, pages
from vmm.coherence.scratch import ScratchGuest
from vmm.coherence.verdict import judge
from vmm.kvm.fd import KvmError
from vmm.kvm.system import System
from vmm.kvm.vm import MemFlag
from vmm.passthrough.memslot_cases import ORDINARY, Regions, StepError, dax_case
from vmm.vfio.device import open_device

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.passthrough.memslot_cases import Case, Memory


SEED: Final = 0
"""Chooses the pages that are looked at besides the first and the last."""
SHORT: Final = 5.0
"""Seconds for the guest where the mapping changes under the slot: Linux 6.12 can spin there."""


@dataclass(frozen=True)
class Row:
    """One slot: the kernel's answer, and the memory type at stage 2.

    memory     the case's name
    flag       whether the Write-Back flag was set
    answer     "ok"; or the errno's name, after the step that failed unless it was the slot's ioctl
    verdict    a `MemoryType`'s value; empty if there was no slot, or no access reached the memory
    cacheable  whether the host maps it cacheable
    """

    memory: str
    flag: bool
    answer: str
    verdict: str
    evidence: tuple[str, ...] = ()
    cacheable: bool = True


def take(bdf: str, dax: Path | None = None) -> list[Row]:
    """Return the rows of this host and of the device at *bdf*. Raises `HostError`.

    *dax* is a directory of a file system that is mounted with DAX.
    """
    with ExitStack() as owned:
        system = owned.enter_context(System.open())
        device = owned.enter_context(open_device(bdf))
        device.enable_memory()
        capability = HostCapability.probe(system)
        ordinary = [*ORDINARY, *([dax_case(dax)] if dax else [])]
        return survey(system, [*ordinary, *Regions(device, system, capability).cases()])


def survey(system: System, cases: Iterable[Case]) -> list[Row]:
    """Return two rows for each of *cases*: without the Write-Back flag, and with it."""
    return [_row(system, case, flag) for case in cases for flag in (False, True)]


def _row(system: System, case: Case, flag: bool) -> Row:  # noqa: FBT001  (a column)
    try:
        with case.make() as memory:
            answer, verdict, evidence = _try(system, memory, flag)
    except StepError as error:
        answer, verdict, evidence = f"{error.what} {_name(error.number)}", "", ()
    return Row(case.name, flag, answer, verdict, evidence, case.cacheable)


def _try(system: System, memory: Memory, flag: bool) -> tuple[str, str, tuple[str, ...]]:  # noqa: FBT001
    flags = int(memory.flags | (MemFlag.WRITE_BACK if flag else 0))
    make = memory.register
    try:
        guest = ScratchGuest(
            system,
            memory.host_address,
            memory.size,
            flags,
            register=None if make is None else lambda vm: make(vm, flags),
        )
    except KvmError as error:
        return _name(error.errno), "", ()
    with guest:
        shielded = flags & (MemFlag.READONLY | MemFlag.GUEST_MEMFD) or make is not None
        if memory.contents is None and not shielded:
            guest.protect()
        if memory.then is not None:
            guest.timeout = SHORT
            try:
                memory.then(guest)
            except KvmError as error:
                return f"later {_name(error.errno)}", "", ()
        offsets = pages(memory.size, SEED) if memory.offset is None else [memory.offset]
        seen = [observe(guest, offset, memory.contents) for offset in offsets]
        verdict = judge(*seen)
        if seen[0].unreached is not None:
            return f"KVM_RUN {_name(seen[0].unreached)}", "", verdict.evidence
        return "ok", verdict.memory_type.value, verdict.evidence


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number))


def main() -> None:
    """Print the rows as JSON: ``python3 -m vmm.passthrough.memslot_survey BDF [DIRECTORY]``."""
    bdf, *directory = sys.argv[1:]
    rows = take(bdf, *map(Path, directory))
    sys.stdout.write(json.dumps([asdict(row) for row in rows]) + "\n")


if __name__ == "__main__":
    main()
