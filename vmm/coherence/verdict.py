"""Which memory type stage 2 gives a range, judged by a scratch guest's accesses to it.

    execute          instruction abort, external (ESR 0x86000010)  -> not cacheable
                     runs                                          -> cacheable (*)
    unaligned load   an alignment fault to EL2, KVM_RUN = EFAULT   -> Device
                     works                                         -> Normal
    DC ZVA           the same; writes, so only where we may
    the kernel's     memory type, where the kernel is patched      -> that type
    stage-2 dump     execute permission                            -> cacheable, or not

Each observation leaves some types possible, and all must agree: the verdict is the one type that
is left, of every page looked at. Where none is left, or more than one, it is undecidable.

The hardware tells Device from Normal. What tells cacheable from not is what KVM does: it makes only
cacheable PFNMAP memory executable, and a fetch from other becomes a synchronous external abort
(arch/arm64/kvm/mmu.c, kvm_s2_fault_compute_prot). KVM_RUN fails with EFAULT for other reasons as
well, such as a device whose memory is off; it means Device only where another access has reached
the range. An exception counts as a fetch only if its class is one that an instruction causes, and
ELR_EL1 is in the page (`vmm.arm64.esr`).

(*) With FEAT_S2FWB such memory is Write-Back whatever the guest's stage 1 says; without, the guest
decides, as in the ledger. A register of the scratch guest's vCPU tells (`vmm.coherence.cpu`).
"""

from __future__ import annotations

import errno
import mmap
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm.arm64 import esr
from vmm.coherence.scratch import RAM, RAM_SIZE, RANGE, Fate, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator


class MemoryType(Enum):
    """The memory type that stage 2 gives a range.

    FORCED_WRITE_BACK  Write-Back, whatever the guest's stage 1 says: the host has FEAT_S2FWB
    GUEST_DECIDES      Write-Back as far as stage 2 goes: the guest's stage 1 can ask for less
    MIXED              pages of different types
    """

    FORCED_WRITE_BACK = "forced WB"
    GUEST_DECIDES = "guest decides"
    NON_CACHEABLE = "NC"
    DEVICE = "Device"
    MIXED = "mixed"
    UNDECIDABLE = "undecidable"


EXECUTED: Final = frozenset({Fate.RAN, Fate.ABORTED, Fate.STORED})
"""How a program ends that has jumped to the range, if it can be told."""

Types = frozenset[MemoryType]
CACHEABLE: Final[Types] = frozenset({MemoryType.FORCED_WRITE_BACK, MemoryType.GUEST_DECIDES})
NORMAL: Final[Types] = CACHEABLE | {MemoryType.NON_CACHEABLE}
DEVICE: Final[Types] = frozenset({MemoryType.DEVICE})
NOT_CACHEABLE: Final[Types] = DEVICE | {MemoryType.NON_CACHEABLE}
ALL: Final[Types] = NORMAL | DEVICE

DUMPED: Final = {
    "MEM/NORMAL-FWB": MemoryType.FORCED_WRITE_BACK,
    "MEM/NORMAL": MemoryType.GUEST_DECIDES,
    "MEM/NORMAL-NC": MemoryType.NON_CACHEABLE,
    "DEVICE/nGnRE": MemoryType.DEVICE,
}
"""Words for the memory type in the stage-2 dump of a kernel that is patched to have them."""


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


@dataclass(frozen=True)
class Observations:
    """The outcome of each access to a page; None: not made.

    offset  the page's, in the range, in bytes
    dump    the line of the stage-2 dump
    fwb     whether the host has FEAT_S2FWB; None, that it cannot be told, counts as no
    pfnmap  whether the host's mapping is VM_PFNMAP; None: not known
    """

    aligned: Outcome | None = None
    unaligned: Outcome | None = None
    zero: Outcome | None = None
    plant: Outcome | None = None
    fetch: Outcome | None = None
    dump: str | None = None
    fwb: bool | None = None
    pfnmap: bool | None = None
    offset: int = 0

    @property
    def unreached(self) -> int | None:
        """KVM_RUN's errno, if already the first access failed with one; else None."""
        first = self.aligned or self.fetch
        return first.errno if first is not None and first.fate is Fate.FAILED else None


# --- judge ----------------------------------------------------------------------------------------


class Clue(NamedTuple):
    """An observation, and the types that are possible with it."""

    because: str
    possible: Types


def judge(*seen: Observations) -> Verdict:
    """Return the verdict for a range of whose pages, one or more, *seen* was seen. Pure."""
    clues = [list(_clues(page)) for page in seen]
    left = [reduce(Types.__and__, (clue.possible for clue in page), ALL) for page in clues]
    memory_type = _joint(left)
    evidence = list(_told_of_pages(seen))
    for page, types, found in zip(seen, left, clues, strict=True):
        if not types:
            said = ", ".join(f"{clue.because} ({_named(clue.possible)})" for clue in found)
            evidence.append(f"at offset {page.offset:#x} observations contradict: {said}")
    if memory_type in NORMAL:
        evidence.append(_on_whose_word(seen[0]))
    if memory_type in CACHEABLE:
        has = {True: "has", False: "has no", None: "is not known to have"}[seen[0].fwb]
        evidence.append(f"the host {has} FEAT_S2FWB")
    return Verdict(memory_type, tuple(evidence))


def _joint(left: list[Types]) -> MemoryType:
    """Return the type that all pages can have; of each, *left* has what is possible."""
    if not all(types and (types <= CACHEABLE or types <= NOT_CACHEABLE) for types in left):
        return MemoryType.UNDECIDABLE
    joint = reduce(Types.__and__, left)
    if not joint:
        return MemoryType.MIXED
    if joint == CACHEABLE:
        return MemoryType.GUEST_DECIDES
    return next(iter(joint)) if len(joint) == 1 else MemoryType.UNDECIDABLE


def _clues(seen: Observations) -> Iterator[Clue]:
    fetched = _was_fetched(seen)
    if fetched is not None:
        yield (
            Clue("it executes", CACHEABLE)
            if fetched
            else Clue("it does not execute", NOT_CACHEABLE)
        )
    reached = fetched is not None or (seen.aligned is not None and seen.aligned.fate is Fate.RAN)
    for what, outcome in (("an unaligned load", seen.unaligned), ("DC ZVA", seen.zero)):
        if outcome is not None and outcome.fate is Fate.RAN:
            yield Clue(f"{what} works", NORMAL)
        elif reached and is_device(outcome):
            yield Clue(f"{what} fails", DEVICE)
    words = (seen.dump or "").split()
    for word in words:
        if word in DUMPED:
            yield Clue(f"the dump has {word}", frozenset({DUMPED[word]}))
    if fetched and "PXNUXN" in words:
        yield Clue("the dump has PXNUXN", NOT_CACHEABLE)
    if "px" in words:
        yield Clue("the dump has px", CACHEABLE)
    if seen.fwb is not None:
        other = MemoryType.GUEST_DECIDES if seen.fwb else MemoryType.FORCED_WRITE_BACK
        yield Clue(f"the CPU has {'' if seen.fwb else 'no '}FEAT_S2FWB", ALL - {other})


def _was_fetched(seen: Observations) -> bool | None:
    """Return whether an instruction was fetched from the page; None: it cannot be told."""
    jump = seen.fetch
    if jump is None or jump.fate not in EXECUTED:
        return None
    if jump.fate in (Fate.RAN, Fate.STORED):
        return True
    start, kind = RANGE + seen.offset, esr.exception_class(jump.esr)
    if kind in esr.CAUSED_BY_AN_INSTRUCTION and start <= jump.elr <= start + mmap.PAGESIZE:
        return True
    if kind == esr.INSTRUCTION_ABORT and jump.elr == start:
        return False if esr.fault_status(jump.esr) == esr.EXTERNAL_ABORT else None
    away = not start <= jump.elr <= start + mmap.PAGESIZE
    if kind == esr.INSTRUCTION_ABORT and away and not RAM <= jump.elr < RAM + RAM_SIZE:
        return True  # it branched away, to where nothing can be fetched
    return None


def is_device(outcome: Outcome | None) -> bool:
    """Return whether *outcome* is that of an access to Device memory, if that was reached."""
    if outcome is None:
        return False
    if outcome.fate is Fate.FAILED:
        return outcome.errno == errno.EFAULT
    return (
        outcome.fate is Fate.ABORTED
        and esr.exception_class(outcome.esr) == esr.DATA_ABORT
        and esr.fault_status(outcome.esr) == esr.ALIGNMENT_FAULT
    )


# --- say ------------------------------------------------------------------------------------------


def _told_of_pages(seen: tuple[Observations, ...]) -> Iterator[str]:
    """Yield what was seen of the first page, then how other pages differ."""
    first, *others = seen
    yield from _told_of_page(first)
    offsets: dict[tuple[str, ...], list[str]] = {}
    for page in others:
        offsets.setdefault(tuple(_told_of_page(page)), []).append(f"{page.offset:#x}")
    for told, where in offsets.items():
        same = told == tuple(_told_of_page(first))
        yield f"at offset {', '.join(where)}: {'the same' if same else ', '.join(told)}"


def _told_of_page(seen: Observations) -> Iterator[str]:
    made = {
        "an aligned load": seen.aligned,
        "an unaligned load": seen.unaligned,
        "DC ZVA": seen.zero,
        "planting an instruction": seen.plant,
        "executing from it": seen.fetch,
    }
    for what, outcome in made.items():
        if outcome is not None:
            yield f"{what} {_told(outcome)}"
    if seen.fetch and seen.fetch.elr not in (0, RANGE + seen.offset):
        yield f"that exception is at {seen.fetch.elr:#x}"
    if seen.dump:
        yield f"the kernel's stage-2 dump has {seen.dump!r}"


def _told(outcome: Outcome) -> str:
    match outcome.fate:
        case Fate.RAN:
            return "works"
        case Fate.ABORTED:
            return f"takes an exception in the guest (ESR_EL1 {outcome.esr:#x})"
        case Fate.STORED:
            return "tries to store to the range, which is read-only then"
        case Fate.FAILED:
            return f"fails KVM_RUN with {errno.errorcode.get(outcome.errno, outcome.errno)}"
        case Fate.HUNG:
            return "does not come back"


def _on_whose_word(seen: Observations) -> str:
    """Return what it rests on that memory is cacheable, or is not."""
    if seen.pfnmap is False:
        return "KVM lets a guest execute all ordinary memory, so only its source says cacheable"
    return "cacheable or not is what KVM does: it lets a guest execute only what it maps cacheable"


def _named(types: Types) -> str:
    return " or ".join(sorted(one.value for one in types))
