"""Which memory type stage 2 gives a range, judged by a scratch guest's accesses to it.

    execute          instruction abort, external (ESR 0x86000010)  -> not cacheable
                     runs                                          -> Write-Back
    unaligned load   an alignment fault to EL2, KVM_RUN = EFAULT   -> Device
                     works                                         -> Normal
    DC ZVA           the same; writes, so only where we may

The verdict rests on how KVM maps PFNMAP memory: it makes only cacheable mappings executable, and a
fetch from another becomes a synchronous external abort (arch/arm64/kvm/mmu.c, user_mem_abort). No
attribute is read from the hardware. KVM_RUN fails with EFAULT for other reasons as well, such as a
device whose memory is off; it means Device only where another access has reached the range. Where
the kernel dumps stage 2 in debugfs, the dump's line is evidence as well.

Write-Back means stage 2's part. Without FWB a guest may still ask for less: such memory is
"Write-Back" here, and "as the guest's stage 1 says" in the ledger.

What the tests write is put back. A range that is not known to be memory, such as registers, is not
written at all: the guest first jumps to its bytes, which only a Write-Back mapping lets it fetch,
with no address in its registers that an instruction could use; then it reads 8 bytes at offset 1.
That read reaches the device: do not test registers that have side effects when read.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol

from vmm.coherence import dump
from vmm.coherence.scratch import RANGE, Fate, Outcome, ScratchGuest

if TYPE_CHECKING:
    from vmm.kvm.system import System

INSTRUCTION_ABORTS: Final = frozenset({0x20, 0x21})
DATA_ABORTS: Final = frozenset({0x24, 0x25})
"""ESR_EL1.EC: from a lower EL, from the same."""
EXTERNAL_ABORT: Final = 0x10
ALIGNMENT_FAULT: Final = 0x21
"""ESR_EL1.IFSC and DFSC."""
TOUCHED: Final = 4096
"""Bytes saved and restored around the tests that write; DC ZVA writes at most 2048."""


class MemoryType(Enum):
    """The memory type that stage 2 gives a range."""

    WRITE_BACK = "WB"
    NON_CACHEABLE = "NC"
    DEVICE = "Device"
    UNDECIDABLE = "undecidable"


@dataclass(frozen=True)
class Verdict:
    """A memory type, and the observations it is judged by."""

    memory_type: MemoryType
    evidence: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.memory_type.value} ({'; '.join(self.evidence)})"

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"memory_type": self.memory_type.value, "evidence": list(self.evidence)}


class Contents(Protocol):
    """The range's bytes, not through stage 2: a mapping, or VFIO read and write."""

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes at *offset*."""

    def write(self, offset: int, data: bytes) -> None:
        """Write *data* at *offset*."""


def prove(  # noqa: PLR0913  (a slot has as many fields)
    system: System,
    host_address: int,
    size: int,
    *,
    flags: int = 0,
    offset: int = 0,
    contents: Contents | None = None,
) -> Verdict:
    """Return what stage 2 gives the *size* bytes mapped at *host_address*, on a scratch VM.

    *flags* are the slot's; *offset* is the page to touch, in bytes. With *contents* the range is
    memory: the tests write to it, and restore it. Raises `KvmError` if the slot is refused.
    """
    with ScratchGuest(system, host_address, size, flags) as guest:
        if contents is None:
            return judge(_look_at_registers(guest, offset))
        return judge(_look_at_memory(guest, offset, contents))


@dataclass(frozen=True)
class Observations:
    """The outcome of each access; None: not made. *dump* is the line of the stage-2 dump."""

    aligned: Outcome | None = None
    unaligned: Outcome | None = None
    zero: Outcome | None = None
    plant: Outcome | None = None
    fetch: Outcome | None = None
    dump: str | None = None


def _look_at_registers(guest: ScratchGuest, offset: int) -> Observations:
    fetch = guest.run("jump", offset)
    if fetch.fate not in (Fate.RAN, Fate.ABORTED):
        return Observations(fetch=fetch)
    return Observations(fetch=fetch, unaligned=guest.run("unaligned", offset), dump=_dump(guest))


def _look_at_memory(guest: ScratchGuest, offset: int, contents: Contents) -> Observations:
    """Touch memory: write only where loads have shown Normal memory, then restore it."""
    aligned = guest.run("aligned", offset)
    if aligned.fate is not Fate.RAN:
        return Observations(aligned)
    unaligned, dump = guest.run("unaligned", offset), _dump(guest)
    if unaligned.fate is not Fate.RAN:
        return Observations(aligned, unaligned, dump=dump)
    saved = contents.read(offset, TOUCHED)
    try:
        zero = guest.run("zero", offset)
        if _is_device(zero):
            return Observations(aligned, unaligned, zero, dump=dump)
        plant = guest.run("plant", offset)
        fetch = guest.run("jump", offset) if plant.fate is Fate.RAN else None
        return Observations(aligned, unaligned, zero, plant, fetch, dump)
    finally:
        contents.write(offset, saved)


def judge(seen: Observations) -> Verdict:
    """Return the verdict for *seen*. Pure."""
    made = {
        "an aligned load": seen.aligned,
        "an unaligned load": seen.unaligned,
        "DC ZVA": seen.zero,
        "planting an instruction": seen.plant,
        "executing from it": seen.fetch,
    }
    evidence = [f"{what} {_told(outcome)}" for what, outcome in made.items() if outcome is not None]
    if seen.dump:
        evidence.append(f"the kernel's stage-2 dump has {seen.dump!r}")
    return Verdict(_type(seen), tuple(evidence))


def _type(seen: Observations) -> MemoryType:
    fetched = _was_fetched(seen.fetch)
    reached = fetched is not None or (seen.aligned is not None and seen.aligned.fate is Fate.RAN)
    normal = seen.unaligned is not None and seen.unaligned.fate is Fate.RAN
    device = _is_device(seen.unaligned) or _is_device(seen.zero)
    if device and reached and not fetched:
        return MemoryType.DEVICE
    if fetched is None or not normal or device:
        return MemoryType.UNDECIDABLE
    return MemoryType.WRITE_BACK if fetched else MemoryType.NON_CACHEABLE


def _was_fetched(jump: Outcome | None) -> bool | None:
    """Return whether an instruction was fetched from the range; None: it cannot be told."""
    if jump is None or jump.fate not in (Fate.RAN, Fate.ABORTED):
        return None
    if jump.fate is Fate.RAN or jump.esr >> 26 not in INSTRUCTION_ABORTS:
        return True
    return False if jump.esr & 0x3F == EXTERNAL_ABORT else None


def _is_device(outcome: Outcome | None) -> bool:
    """Return whether *outcome* is that of an access to Device memory, if that was reached."""
    if outcome is None:
        return False
    if outcome.fate is Fate.FAILED:
        return outcome.errno == errno.EFAULT
    return (
        outcome.fate is Fate.ABORTED
        and outcome.esr >> 26 in DATA_ABORTS
        and outcome.esr & 0x3F == ALIGNMENT_FAULT
    )


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
    """Return the stage-2 dump's line for the range; None where there is no dump."""
    spans = dump.read(guest.vm) or ()
    found = (span.attributes for span in spans if span.addresses.contains(RANGE))
    return next(found, None)
