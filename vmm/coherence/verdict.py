"""Which memory type stage 2 gives a range, judged by a scratch guest's accesses to it.

    execute          instruction abort, external (ESR 0x86000010)  -> not cacheable
                     runs                                          -> cacheable (*)
    unaligned load   an alignment fault to EL2, KVM_RUN = EFAULT   -> Device
                     works                                         -> Normal
    DC ZVA           the same; writes, so only where we may

The verdict rests on how KVM maps PFNMAP memory: it makes only cacheable mappings executable, and a
fetch from another becomes a synchronous external abort (arch/arm64/kvm/mmu.c, user_mem_abort). No
attribute is read from the hardware. KVM_RUN fails with EFAULT for other reasons as well, such as a
device whose memory is off; it means Device only where another access has reached the range. Where
the kernel dumps stage 2 in debugfs, the dump's line is evidence as well.

(*) With FEAT_S2FWB such memory is Write-Back whatever the guest's stage 1 says; without, the guest
decides, as in the ledger. A register of the scratch guest's vCPU tells (`vmm.coherence.cpu`).

What the tests write is put back. A range that is not known to be memory, such as registers, is not
written at all: the guest first jumps to its bytes, which only a Write-Back mapping lets it fetch,
with no address in its registers that an instruction could use; then it reads 8 bytes at offset 1.
That read reaches the device: do not test registers that have side effects when read.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
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
    """The memory type that stage 2 gives a range.

    FORCED_WRITE_BACK  Write-Back, whatever the guest's stage 1 says: the host has FEAT_S2FWB
    GUEST_DECIDES      Write-Back as far as stage 2 goes: the guest's stage 1 can ask for less
    """

    FORCED_WRITE_BACK = "forced WB"
    GUEST_DECIDES = "guest decides"
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
            seen = _look_at_registers(guest, offset)
        else:
            seen = _look_at_memory(guest, offset, contents)
        return judge(replace(seen, fwb=guest.cpu.fwb))


@dataclass(frozen=True)
class Observations:
    """The outcome of each access; None: not made. *dump* is the line of the stage-2 dump.

    *fwb* tells whether the host has FEAT_S2FWB; None, that it cannot be told, counts as no.
    """

    aligned: Outcome | None = None
    unaligned: Outcome | None = None
    zero: Outcome | None = None
    plant: Outcome | None = None
    fetch: Outcome | None = None
    dump: str | None = None
    fwb: bool | None = None


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
    memory_type = _type(seen)
    if memory_type in (MemoryType.FORCED_WRITE_BACK, MemoryType.GUEST_DECIDES):
        evidence.append(f"the host {'has' if seen.fwb else 'is not known to have'} FEAT_S2FWB")
    return Verdict(memory_type, tuple(evidence))


def _type(seen: Observations) -> MemoryType:
    fetched = _was_fetched(seen.fetch)
    reached = fetched is not None or (seen.aligned is not None and seen.aligned.fate is Fate.RAN)
    normal = seen.unaligned is not None and seen.unaligned.fate is Fate.RAN
    device = _is_device(seen.unaligned) or _is_device(seen.zero)
    if device and reached and not fetched:
        return MemoryType.DEVICE
    if fetched is None or not normal or device:
        return MemoryType.UNDECIDABLE
    if not fetched:
        return MemoryType.NON_CACHEABLE
    return MemoryType.FORCED_WRITE_BACK if seen.fwb else MemoryType.GUEST_DECIDES


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
