"""Prove on a scratch VM what stage 2 gives a range: the accesses that a verdict is judged by.

What the tests write is put back. A range that is not known to be memory, such as registers, is not
written at all: its slot is read-only, so what is executed of it stores nothing. The guest first
jumps to its bytes, which only a Write-Back mapping lets it fetch, with no address in its registers;
then it reads 8 bytes at offset 1. The memory type is that of a slot which is not read-only, but for
the permission to write: KVM decides them apart (arch/arm64/kvm/mmu.c, user_mem_abort). That read
reaches the device: do not test registers that have side effects when read. It is made in
the first page only; from other pages such a range is only executed.
"""

from __future__ import annotations

import mmap
import secrets
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Final, Protocol

from vmm.coherence import dump
from vmm.coherence.scratch import PLAIN, RANGE, Fate, Features, ScratchGuest
from vmm.coherence.verdict import EXECUTED, Observations, Verdict, is_device, judge
from vmm.kvm.vm import MemFlag

if TYPE_CHECKING:
    from vmm.kvm.system import System

TOUCHED: Final = 4096
"""Bytes saved and restored around the tests that write; DC ZVA writes at most 2048."""
RANDOM_PAGES: Final = 2
"""Pages that are looked at besides the first and the last."""


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
    contents: Contents | None = None,
    features: Features = PLAIN,
    seed: int | None = None,
) -> Verdict:
    """Return what stage 2 gives the *size* bytes mapped at *host_address*, on a scratch VM.

    *flags* are the slot's, *features* those of the guest it is for. With *contents* the range is
    memory: the tests write to it, and restore it. Without, the slot is KVM_MEM_READONLY. *seed*
    chooses the pages that are looked at besides the first and the last; None: a new one, which the
    evidence has.

    Raises `KvmError` if the slot is refused, `HostError` if no guest can have *features*.
    """
    seed = secrets.randbits(32) if seed is None else seed
    offsets = pages(size, seed)
    if contents is None:
        flags |= MemFlag.READONLY
    with ScratchGuest(system, host_address, size, flags, features=features) as guest:
        seen = [observe(guest, offset, contents) for offset in offsets]
    verdict = judge(*seen)
    if len(offsets) <= RANDOM_PAGES:
        return verdict
    return replace(verdict, evidence=(*verdict.evidence, f"the pages were chosen by seed {seed}"))


def pages(size: int, seed: int, page: int = mmap.PAGESIZE) -> list[int]:
    """Return the offsets of the first page of *size* bytes, of random others, and of the last."""
    inner = range(1, size // page - 1)
    chosen = Random(seed).sample(inner, min(RANDOM_PAGES, len(inner)))  # noqa: S311  (no secret)
    return sorted({0, *(number * page for number in chosen), size - page})


def observe(guest: ScratchGuest, offset: int, contents: Contents | None) -> Observations:
    """Return what *guest* sees of the page at *offset* of its range; see `prove`."""
    if contents is None:
        seen = _look_at_registers(guest, offset)
    else:
        seen = _look_at_memory(guest, offset, contents)
    return replace(
        seen,
        dump=seen.dump or _dump(guest, offset),
        fwb=guest.cpu.fwb,
        pfnmap=None if guest.behind is None else guest.behind.is_pfnmap,
        offset=offset,
    )


def _look_at_registers(guest: ScratchGuest, offset: int) -> Observations:
    """Execute the page, and load from it if it is the first.

    The dump is taken between them. Without FWB, KVM unmaps all when a vCPU that has run is
    initialized again (arch/arm64/kvm/arm.c), and without DIC what is only loaded is not executable.
    """
    fetch = guest.run("jump", offset)
    if offset or fetch.fate not in EXECUTED:
        return Observations(fetch=fetch)
    dumped = _dump(guest, offset)
    return Observations(fetch=fetch, unaligned=guest.run("unaligned", offset), dump=dumped)


def _look_at_memory(guest: ScratchGuest, offset: int, contents: Contents) -> Observations:
    """Touch memory: write only where loads have shown Normal memory, then restore it."""
    aligned = guest.run("aligned", offset)
    if aligned.fate is not Fate.RAN:
        return Observations(aligned)
    unaligned = guest.run("unaligned", offset)
    if unaligned.fate is not Fate.RAN:
        return Observations(aligned, unaligned)
    saved = contents.read(offset, TOUCHED)
    try:
        zero = guest.run("zero", offset)
        if is_device(zero):
            return Observations(aligned, unaligned, zero)
        plant = guest.run("plant", offset)
        fetch = guest.run("jump", offset) if plant.fate is Fate.RAN else None
        return Observations(aligned, unaligned, zero, plant, fetch)
    finally:
        contents.write(offset, saved)


def _dump(guest: ScratchGuest, offset: int) -> str | None:
    """Return what the stage-2 dump has for a page of the range; None where there is no dump.

    Without its first columns, size and level: they are those of all that the line is about.
    """
    spans = dump.read(guest.vm) or ()
    found = (span.attributes for span in spans if span.addresses.contains(RANGE + offset))
    return next((" ".join(attributes.split()[2:]) for attributes in found), None)
