"""What stage 2 really gave a range: asked of the hardware, not of anybody's word.

    unaligned load   an alignment fault to EL2, KVM_RUN = EFAULT   -> Device
                     works                                         -> Normal
    DC ZVA           the same; writes, so only where we may
    execute          instruction abort, ESR 0x86000010             -> not cacheable
                     runs                                          -> Write-Back

KVM lets a guest execute only from what it maps cacheable: the fetch fault's ENOEXEC becomes a
synchronous external abort (arch/arm64/kvm/mmu.c, user_mem_abort). Where the kernel dumps stage 2
in debugfs, the dump's line is evidence as well.

A range is not disturbed: what the tests write is put back. A range that is not known to be
memory, such as registers, is not written at all; the guest then jumps into whatever is there,
which a non-cacheable mapping never lets it fetch, with nothing in its registers that an
instruction could do harm with.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from vmm.coherence.scratch import RANGE, Fate, Outcome, ScratchGuest

if TYPE_CHECKING:
    from vmm.kvm.system import System

DEBUGFS: Final = Path("/sys/kernel/debug/kvm")
EXTERNAL_ABORT_ON_FETCH: Final = 0x8600_0010
"""ESR_EL1: instruction abort from the same EL, synchronous external abort."""
INSTRUCTION_ABORTS: Final = frozenset({0x20, 0x21})
"""ESR_EL1.EC: from a lower EL, from the same."""
ALIGNMENT_FAULT: Final = 0x21
"""ESR_EL1.DFSC."""
TOUCHED: Final = 4096
"""Bytes saved and put back around the writing tests; DC ZVA writes 2048 at most."""


class MemoryType(Enum):
    """The answer."""

    WRITE_BACK = "WB"
    NON_CACHEABLE = "NC"
    DEVICE = "Device"
    UNDECIDABLE = "undecidable"


@dataclass(frozen=True)
class Verdict:
    """The memory type that stage 2 gives a range, and the observations that say so."""

    memory_type: MemoryType
    evidence: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.memory_type.value} ({'; '.join(self.evidence)})"

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"memory-type": self.memory_type.value, "evidence": list(self.evidence)}


class Contents(Protocol):
    """Access to what the range holds, around stage 2: a mapping, or VFIO's read and write."""

    def read(self, offset: int, size: int) -> bytes:
        """Return what is there."""

    def write(self, offset: int, data: bytes) -> None:
        """Put it there."""


def prove(  # noqa: PLR0913  (a slot has as many fields)
    system: System,
    host_address: int,
    size: int,
    *,
    flags: int = 0,
    offset: int = 0,
    contents: Contents | None = None,
) -> Verdict:
    """Find what stage 2 gives the *size* bytes mapped at *host_address*, on a scratch VM.

    *flags* are the slot's; *offset* is where to touch, page-aligned. With *contents* the range
    is memory, and the tests may write there, to put back what was. Raises `KvmError` if the
    slot is refused.
    """
    saved = contents.read(offset, TOUCHED) if contents else b""
    try:
        with ScratchGuest(system, host_address, size, flags) as guest:
            load = guest.run("unaligned", offset)
            dump = _dump(guest)  # of what the load has mapped
            if load.fate is not Fate.RAN:
                return judge(load, None, None, dump)
        with ScratchGuest(system, host_address, size, flags) as guest:
            zero = guest.run("zero", offset) if contents else None
        with ScratchGuest(system, host_address, size, flags) as guest:
            planted = guest.run("plant", offset) if contents else None
            if planted is not None and planted.fate is not Fate.RAN:
                return judge(load, planted, None, dump)
            fetch = guest.run("jump", offset)
            return judge(load, zero, fetch, dump)
    finally:
        if contents:
            contents.write(offset, saved)


def judge(load: Outcome, zero: Outcome | None, fetch: Outcome | None, dump: str | None) -> Verdict:
    """Say what the observations mean. Pure."""
    evidence = [f"an unaligned load {_told(load)}"]
    if zero is not None:
        evidence.append(f"DC ZVA {_told(zero)}")
    if fetch is not None:
        evidence.append(f"executing from it {_told(fetch)}")
    if dump:
        evidence.append(f"the kernel's stage-2 dump has {dump!r}")
    if any(_is_device(outcome) for outcome in (load, zero)):
        memory_type = MemoryType.DEVICE
    elif load.fate is not Fate.RAN or fetch is None:
        memory_type = MemoryType.UNDECIDABLE
    elif _was_fetched(fetch):
        memory_type = MemoryType.WRITE_BACK
    elif fetch.fate is Fate.ABORTED and fetch.esr == EXTERNAL_ABORT_ON_FETCH:
        memory_type = MemoryType.NON_CACHEABLE
    else:
        memory_type = MemoryType.UNDECIDABLE
    return Verdict(memory_type, tuple(evidence))


def _was_fetched(jump: Outcome) -> bool:
    """Whether an instruction came from the range: it ran, or it was none and said so."""
    if jump.fate is Fate.ABORTED:
        return jump.esr >> 26 not in INSTRUCTION_ABORTS
    return jump.fate is Fate.RAN


def _is_device(outcome: Outcome | None) -> bool:
    if outcome is None:
        return False
    if outcome.fate is Fate.FAILED:
        return outcome.errno == errno.EFAULT
    return outcome.fate is Fate.ABORTED and outcome.esr & 0x3F == ALIGNMENT_FAULT


def _told(outcome: Outcome) -> str:
    match outcome.fate:
        case Fate.RAN:
            return "works"
        case Fate.ABORTED:
            return f"takes an exception in the guest (ESR_EL1 {outcome.esr:#x})"
        case Fate.FAILED:
            return f"fails KVM_RUN with {errno.errorcode.get(outcome.errno, outcome.errno)}"
        case Fate.HUNG:
            return "does not come back"


def _dump(guest: ScratchGuest) -> str | None:
    """Return the stage-2 dump's line for the range, if this kernel has one for us."""
    path = DEBUGFS / f"{os.getpid()}-{guest.vm.fileno()}" / "stage2_page_tables"
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        span, *columns = line.split() or [""]
        start, _, end = span.partition("-")
        # A line of two columns, size and level, is a hole.
        if len(columns) > 2 and _hex(start) <= RANGE < _hex(end):
            return " ".join(columns)
    return None


def _hex(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return -1
