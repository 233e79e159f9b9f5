"""Breakpoints in real guest memory, and what vCPUs are told of the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmm.arm64.debug_registers import Counts, breakpoint_pair, watchpoint_pairs
from vmm.arm64.translation import Regime
from vmm.coherence.ledger import Entry, Ledger
from vmm.coherence.policy import Attribute, Promise, Stage1, Stage2
from vmm.debug.breakpoints import BRK, Breakpoints
from vmm.debug.memory import DebugMemory
from vmm.errors import GuestAddressError, UserError
from vmm.kvm.vcpu import GuestDebug
from vmm.memory import Backing, GuestMemory, Mapping

BASE, SIZE = 0x4000_0000, 0x4000
OFF = Regime(0, 0, 0, 0)
NOP = bytes.fromhex("1f2003d5")
SOFT, HARD, WATCH = 0, 1, 2


@pytest.fixture
def ram() -> Iterator[GuestMemory]:
    with Mapping.anonymous(SIZE) as mapping:
        memory = GuestMemory([mapping.region(BASE)])
        memory.write(BASE, NOP * (SIZE // 4))
        yield memory


@pytest.fixture
def debug_memory(ram: GuestMemory) -> DebugMemory:
    entry = Entry(
        "ram",
        BASE,
        SIZE,
        Backing.ANONYMOUS,
        Attribute(Stage1.CACHEABLE, ""),
        Promise(Stage2.GUEST_DECIDES, ""),
    )
    return DebugMemory(ram, lambda: Ledger([entry]))


@pytest.fixture
def points(debug_memory: DebugMemory) -> Breakpoints:
    return Breakpoints(debug_memory, Counts(2, 2))


def test_a_soft_breakpoint_is_a_brk_until_it_is_removed(
    points: Breakpoints, ram: GuestMemory
) -> None:
    points.insert(SOFT, BASE + 8, 4, OFF)
    points.insert(SOFT, BASE + 8, 4, OFF)  # gdb may insert one twice
    assert ram.read(BASE + 4, 12) == NOP + BRK + NOP
    assert points.is_soft(BASE + 8)
    assert not points.is_soft(BASE + 4)
    assert points.debug(step=False) == GuestDebug(trap_brk=True)
    points.remove(SOFT, BASE + 8, 4)
    points.remove(SOFT, BASE + 8, 4)
    assert ram.read(BASE + 4, 12) == NOP * 3
    assert points.debug(step=False) == GuestDebug()


def test_what_the_guest_wrote_over_a_breakpoint_stays(
    points: Breakpoints, ram: GuestMemory
) -> None:
    points.insert(SOFT, BASE, 4, OFF)
    ram.write(BASE, b"new!")
    points.clear()
    assert ram.read(BASE, 4) == b"new!"


def test_a_breakpoint_without_memory_is_an_error(points: Breakpoints) -> None:
    with pytest.raises(GuestAddressError):
        points.insert(SOFT, BASE + SIZE, 4, OFF)
    assert not points.debug(step=False).enabled


def test_registers_are_limited(points: Breakpoints) -> None:
    points.insert(HARD, BASE, 4, OFF)
    points.insert(HARD, BASE + 4, 4, OFF)
    with pytest.raises(UserError, match="2 hardware breakpoints"):
        points.insert(HARD, BASE + 8, 4, OFF)
    points.insert(WATCH, BASE + 4, 8, OFF)  # two halves of doublewords
    with pytest.raises(UserError, match="2 hardware watchpoints"):
        points.insert(WATCH, BASE + 0x100, 8, OFF)
    assert points.debug(step=True) == GuestDebug(
        step=True,
        breakpoints=(breakpoint_pair(BASE), breakpoint_pair(BASE + 4)),
        watchpoints=tuple(watchpoint_pairs(BASE + 4, 8, 2)),
    )
    points.remove(HARD, BASE, 4)
    points.remove(WATCH, BASE + 4, 8)
    assert points.debug(step=False) == GuestDebug(breakpoints=(breakpoint_pair(BASE + 4),))


def test_a_watchpoint_is_found_by_the_access(points: Breakpoints) -> None:
    assert points.watch_of(BASE) is None
    points.insert(WATCH, BASE + 8, 4, OFF)
    points.insert(4, BASE + 0x100, 4, OFF)
    for far, address in ((BASE + 10, BASE + 8), (BASE, BASE + 8), (BASE + 0xF8, BASE + 0x100)):
        watch = points.watch_of(far)
        assert watch is not None
        assert watch.address == address


def test_a_read_ends_at_the_first_gap(debug_memory: DebugMemory) -> None:
    assert debug_memory.read(OFF, BASE + SIZE - 4, 100) == NOP
    with pytest.raises(GuestAddressError):
        debug_memory.read(OFF, BASE + SIZE, 4)


def test_a_write_that_does_not_fit_writes_nothing(
    debug_memory: DebugMemory, ram: GuestMemory
) -> None:
    with pytest.raises(GuestAddressError):
        debug_memory.write(OFF, BASE + SIZE - 4, b"12345678")
    assert ram.read(BASE + SIZE - 4, 4) == NOP


def test_reads_and_writes_cross_pages(debug_memory: DebugMemory) -> None:
    debug_memory.write(OFF, BASE + 0xFFE, b"abcd")
    assert debug_memory.read(OFF, BASE + 0xFFD, 6) == NOP[1:2] + b"abcd" + NOP[2:3]
