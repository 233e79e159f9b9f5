"""A verdict follows from what was seen, and all that was seen must agree with it."""

from __future__ import annotations

import errno
import mmap

import pytest

from vmm.arm64 import esr
from vmm.coherence.prove import pages
from vmm.coherence.scratch import RAM, RANGE, Fate, Outcome
from vmm.coherence.verdict import MemoryType, Observations, judge

PAGE = mmap.PAGESIZE
FORCED = MemoryType.FORCED_WRITE_BACK
GUEST = MemoryType.GUEST_DECIDES
NC = MemoryType.NON_CACHEABLE
DEVICE = MemoryType.DEVICE
UNDECIDABLE = MemoryType.UNDECIDABLE


def exception(kind: int, status: int = 0, elr: int = RANGE) -> Outcome:
    """Return an exception of class *kind*, with IL set, at *elr*."""
    return Outcome(Fate.ABORTED, esr=kind << 26 | 1 << 25 | status, elr=elr)


RAN = Outcome(Fate.RAN)
EFAULT = Outcome(Fate.FAILED, errno=errno.EFAULT)
ENOSYS = Outcome(Fate.FAILED, errno=errno.ENOSYS)
HUNG = Outcome(Fate.HUNG)
ABORT = exception(0x21, 0x10)
TRANSLATION = exception(0x21, 0x07)
ALIGNMENT = exception(0x25, 0x21, elr=0x4000_1000)
OTHER_DATA_ABORT = exception(0x25, 0x10, elr=0x4000_1000)
UNDEFINED = exception(0x00)

FWB_LINE = "R W px ux AF BLK MEM/NORMAL-FWB"
PLAIN_LINE = "R W px ux AF MEM/NORMAL"
NC_LINE = "R W PXNUXN AF MEM/NORMAL-NC"
DEVICE_LINE = "R W PXNUXN AF DEVICE/nGnRE"


def registers(fetch: Outcome, unaligned: Outcome | None = None, *, dump: str = "") -> Observations:
    return Observations(fetch=fetch, unaligned=unaligned, dump=dump or None)


def memory(fetch: Outcome | None = None, **seen: str | bool | int) -> Observations:
    return Observations(RAN, RAN, RAN, RAN, fetch, **seen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        # memory, which may be written
        (memory(RAN, fwb=True), FORCED),
        (memory(RAN, fwb=False), GUEST),
        (memory(RAN), GUEST),  # nothing tells FWB
        (Observations(RAN, RAN, UNDEFINED, RAN, RAN), GUEST),  # DCZID_EL0.DZP
        (memory(ABORT), NC),
        (Observations(RAN, EFAULT), DEVICE),
        (Observations(RAN, ALIGNMENT), DEVICE),
        (Observations(RAN, zero=EFAULT), DEVICE),
        (Observations(RAN, OTHER_DATA_ABORT), UNDECIDABLE),
        (Observations(RAN, exception(0x21, 0x21)), UNDECIDABLE),
        (Observations(RAN, HUNG), UNDECIDABLE),
        (Observations(RAN, ENOSYS), UNDECIDABLE),
        (Observations(RAN, RAN, RAN, EFAULT), UNDECIDABLE),
        (Observations(RAN, RAN), UNDECIDABLE),
        (memory(TRANSLATION), UNDECIDABLE),
        (memory(HUNG), UNDECIDABLE),
        # registers, which may not
        (registers(ABORT, RAN), NC),
        (registers(ABORT, EFAULT), DEVICE),
        (registers(ABORT, HUNG), UNDECIDABLE),
        (registers(ABORT), UNDECIDABLE),
        (registers(UNDEFINED, RAN), GUEST),
        (registers(HUNG), UNDECIDABLE),
        (registers(TRANSLATION, EFAULT), UNDECIDABLE),
        # neither: what contradicts itself
        (registers(RAN, EFAULT), UNDECIDABLE),
        (Observations(RAN, RAN, EFAULT), UNDECIDABLE),
        (Observations(RAN, RAN, EFAULT, RAN, RAN), UNDECIDABLE),
        (Observations(), UNDECIDABLE),
    ],
)
def test_a_verdict_follows_from_what_was_seen(seen: Observations, expected: MemoryType) -> None:
    assert judge(seen).memory_type is expected


@pytest.mark.parametrize(
    ("fetch", "fwb", "dump", "expected"),
    [
        (RAN, True, FWB_LINE, FORCED),
        (RAN, None, FWB_LINE, FORCED),
        (RAN, False, FWB_LINE, UNDECIDABLE),
        (RAN, False, PLAIN_LINE, GUEST),
        (RAN, True, PLAIN_LINE, UNDECIDABLE),
        (RAN, True, NC_LINE, UNDECIDABLE),
        (RAN, True, DEVICE_LINE, UNDECIDABLE),
        (ABORT, True, NC_LINE, NC),
        (ABORT, True, FWB_LINE, UNDECIDABLE),
        (ABORT, True, DEVICE_LINE, UNDECIDABLE),  # the unaligned load works
        (None, True, NC_LINE, NC),
        # A kernel without the patch tells permissions only.
        (RAN, True, "R W px ux AF", FORCED),
        (RAN, True, "R W PXNUXN AF", UNDECIDABLE),
        (RAN, True, "R W PXNUXN AF MEM/NORMAL-FWB", UNDECIDABLE),
        (ABORT, True, "R W px ux AF", UNDECIDABLE),
        (ABORT, True, "R W PXNUXN AF", NC),
    ],
)
def test_the_stage_2_dump_must_agree(
    *, fetch: Outcome | None, fwb: bool | None, dump: str, expected: MemoryType
) -> None:
    verdict = judge(memory(fetch, fwb=fwb, dump=dump))  # type: ignore[arg-type]
    assert verdict.memory_type is expected
    conflicts = [line for line in verdict.evidence if "contradict" in line]
    assert bool(conflicts) is (expected is UNDECIDABLE)
    assert f"the kernel's stage-2 dump has {dump!r}" in verdict.evidence


def test_a_contradiction_is_named() -> None:
    evidence = judge(memory(RAN, fwb=True, dump=NC_LINE)).evidence
    (conflict,) = (line for line in evidence if "contradict" in line)
    assert "it executes (forced WB or guest decides)" in conflict
    assert "the dump has MEM/NORMAL-NC (NC)" in conflict


@pytest.mark.parametrize("kind", sorted(esr.CAUSED_BY_AN_INSTRUCTION))
def test_an_exception_that_an_instruction_causes_shows_a_fetch(kind: int) -> None:
    assert judge(registers(exception(kind), RAN)).memory_type is GUEST
    after = exception(kind, elr=RANGE + 4)
    assert judge(registers(after, RAN)).memory_type is GUEST
    elsewhere = exception(kind, elr=0x4000_1000)
    assert judge(registers(elsewhere, RAN)).memory_type is UNDECIDABLE
    beyond = exception(kind, elr=RANGE + PAGE + 4)
    assert judge(registers(beyond, RAN)).memory_type is UNDECIDABLE


@pytest.mark.parametrize(
    "kind",
    [
        0x0E,  # illegal execution state
        0x22,  # PC alignment
        0x20,  # instruction abort from EL0
        0x24,  # data abort from EL0
        0x30,  # breakpoint
        0x31,
        0x32,  # software step
        0x33,
        0x34,  # watchpoint
        0x35,
        0x2F,  # SError
        0x3D,  # profiling
        0x3F,
    ],
)
def test_an_exception_that_needs_no_instruction_shows_none(kind: int) -> None:
    assert kind not in esr.CAUSED_BY_AN_INSTRUCTION
    assert judge(registers(exception(kind, 0x10), RAN)).memory_type is UNDECIDABLE


def test_an_instruction_abort_elsewhere_is_not_the_pages() -> None:
    assert judge(memory(exception(0x21, 0x10, elr=RANGE + 4))).memory_type is UNDECIDABLE
    assert judge(memory(exception(0x21, 0x04, elr=RAM + 0x100))).memory_type is UNDECIDABLE


@pytest.mark.parametrize("elr", [0, RANGE - 4, RANGE + 4 * PAGE, 0xDEAD_0000_0000])
def test_bytes_that_branch_away_were_executed(elr: int) -> None:
    """What they branch to cannot be fetched, or not executed: the branch itself was."""
    assert judge(memory(exception(0x21, 0x04, elr=elr))).memory_type is GUEST


def test_a_store_that_was_tried_was_executed() -> None:
    assert judge(memory(Outcome(Fate.STORED))).memory_type is GUEST


@pytest.mark.parametrize("seen", [Observations(EFAULT), Observations(fetch=EFAULT)])
def test_a_range_that_cannot_be_reached_is_not_taken_for_device_memory(seen: Observations) -> None:
    """KVM_RUN fails with EFAULT as well where a device's memory is off, or its mapping is gone."""
    verdict = judge(seen)
    assert verdict.memory_type is UNDECIDABLE
    assert "EFAULT" in verdict.evidence[0]


def test_a_verdict_says_on_whose_word_memory_is_cacheable_or_not() -> None:
    """A fetch tells it of PFNMAP memory only: KVM makes all other memory executable."""
    for seen in (memory(RAN), memory(ABORT)):
        assert any("what KVM does" in line for line in judge(seen).evidence)
    evidence = judge(memory(RAN, pfnmap=False)).evidence
    assert any("only its source says" in line for line in evidence)
    assert not any("what KVM does" in line for line in evidence)
    evidence = judge(Observations(RAN, EFAULT)).evidence  # the hardware told
    assert not any("KVM does" in line for line in evidence)


# --- pages ----------------------------------------------------------------------------------------


def test_first_last_and_random_pages_are_looked_at() -> None:
    size = 1000 * PAGE
    found = pages(size, 1)
    assert (found[0], found[-1], len(found)) == (0, size - PAGE, 4)
    assert pages(size, 1) == found == sorted(set(found))
    assert all(offset % PAGE == 0 for offset in found)
    assert any(pages(size, seed) != found for seed in range(2, 10))
    assert pages(PAGE, 1) == [0]
    assert pages(2 * PAGE, 1) == [0, PAGE]
    assert pages(3 * PAGE, 1) == [0, PAGE, 2 * PAGE]


def at(page: int, seen: Outcome, **more: str | bool | int) -> Observations:
    """Return what was seen of memory at *page*, whose fetch came out as *seen*."""
    elr = RANGE + page * PAGE if seen.fate is Fate.ABORTED else 0
    return memory(Outcome(seen.fate, seen.esr, seen.errno, elr), offset=page * PAGE, **more)


def test_pages_of_one_type_are_told_once() -> None:
    verdict = judge(at(0, ABORT), at(3, ABORT), at(7, ABORT))
    assert verdict.memory_type is NC
    assert f"at offset {3 * PAGE:#x}, {7 * PAGE:#x}: the same" in verdict.evidence


def test_pages_of_two_types_are_mixed() -> None:
    verdict = judge(at(0, RAN, fwb=True), at(3, RAN, fwb=True), at(7, ABORT, fwb=True))
    assert verdict.memory_type is MemoryType.MIXED
    (told,) = (line for line in verdict.evidence if line.startswith(f"at offset {7 * PAGE:#x}"))
    assert "ESR_EL1 0x86000010" in told


def test_one_page_that_tells_nothing_makes_all_undecidable() -> None:
    assert judge(at(0, RAN), at(3, HUNG)).memory_type is UNDECIDABLE
    assert judge(at(0, RAN), at(1, ABORT), at(3, HUNG)).memory_type is UNDECIDABLE
    contradicts = at(3, RAN, dump=NC_LINE)
    verdict = judge(at(0, RAN), contradicts)
    assert verdict.memory_type is UNDECIDABLE
    assert any(f"at offset {3 * PAGE:#x} observations contradict" in a for a in verdict.evidence)


def test_of_registers_one_page_is_read_and_others_only_executed() -> None:
    first = registers(ABORT, RAN)
    other = Observations(fetch=exception(0x21, 0x10, elr=RANGE + PAGE), offset=PAGE)
    assert judge(first, other).memory_type is NC
    assert judge(registers(ABORT, EFAULT), other).memory_type is DEVICE
    fetched = Observations(fetch=exception(0x00, elr=RANGE + PAGE), offset=PAGE)
    assert judge(first, fetched).memory_type is MemoryType.MIXED
    assert judge(registers(UNDEFINED, RAN), fetched).memory_type is GUEST
