"""Under the coherency sanitizer each piece of maintenance that is left out makes a test fall."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.coherence.test_ledger import entry
from vmm._native import lib
from vmm.coherence import ledger as ledger_module
from vmm.coherence.ledger import Ledger
from vmm.coherence.policy import Stage1, Stage2
from vmm.coherence.sanitizer import TwoCopies

BASE = 0x4000_0000
SIZE = 4096
LINE = 64


class Both:
    """RAM in two copies: what we do by caches, and what a guest does without."""

    def __init__(self, copies: TwoCopies, ledger: Ledger) -> None:
        self.copies = copies
        self.ledger = ledger

    def read(self, at: int, size: int) -> bytes:
        view = self.copies.view[at : at + size]
        self.ledger.before_read(BASE + at, view)
        return bytes(view)

    def write(self, at: int, data: bytes) -> None:
        view = self.copies.view[at : at + len(data)]
        self.ledger.before_write(BASE + at, view)
        view[:] = data
        self.ledger.after_write(BASE + at, view)

    def guest_reads(self, at: int, size: int) -> bytes:
        return bytes(self.copies.memory[at : at + size])

    def guest_writes(self, at: int, data: bytes) -> None:
        self.copies.memory[at : at + len(data)] = data


@contextmanager
def two_copies() -> Iterator[Both]:
    ledger = Ledger([entry(Stage1.CACHEABLE, Stage2.GUEST_DECIDES, BASE, SIZE)])
    with TwoCopies(SIZE) as copies:
        yield Both(copies, ledger)


def what_a_guest_writes_is_read() -> None:
    with two_copies() as both:
        assert both.read(0, SIZE) == bytes(SIZE)
        both.guest_writes(100, b"guest")
        assert both.read(100, 5) == b"guest"


def what_is_written_reaches_the_guest() -> None:
    with two_copies() as both:
        both.write(1000, b"host" * 40)
        assert both.guest_reads(1000, 160) == b"host" * 40


def a_write_keeps_the_guests_part_of_its_first_line() -> None:
    with two_copies() as both:
        both.read(0, SIZE)
        both.guest_writes(0, b"guest")
        both.write(LINE - 4, b"host" * 33)
        assert both.guest_reads(0, 5) == b"guest"


def a_write_keeps_the_guests_part_of_its_last_line() -> None:
    with two_copies() as both:
        both.read(0, SIZE)
        both.guest_writes(4 * LINE - 5, b"guest")
        both.write(LINE, b"host" * 33)
        assert both.guest_reads(4 * LINE - 5, 5) == b"guest"


def bytes_that_were_there_before_reach_the_guest() -> None:
    """Store a whole line again: it is dirty because of the store, not by its bytes."""
    with two_copies() as both:
        both.write(0, b"host" * LINE)
        both.guest_writes(LINE, bytes(LINE))
        both.write(0, b"host" * LINE)
        assert both.guest_reads(LINE, LINE) == b"host" * (LINE // 4)


CHECKS = (
    bytes_that_were_there_before_reach_the_guest,
    what_a_guest_writes_is_read,
    what_is_written_reaches_the_guest,
    a_write_keeps_the_guests_part_of_its_first_line,
    a_write_keeps_the_guests_part_of_its_last_line,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_with_all_maintenance_both_sides_agree(check: Callable[[], None]) -> None:
    check()


def test_without_any_nothing_moves() -> None:
    """The copies are apart, or these tests could not fail."""
    with two_copies() as both:
        both.copies.view[0:4] = b"host"
        both.guest_writes(64, b"guest")
        assert both.guest_reads(0, 4) == bytes(4)
        assert bytes(both.copies.view[64:69]) == bytes(5)


# --- each call site of maintenance, left out once ----------------------------------------------


class Without:
    """The C library as the ledger sees it, without the call number *left_out* of each access."""

    def __init__(self, name: str, nth: int | None) -> None:
        self._name, self._nth, self._count = name, nth, 0

    def again(self) -> None:
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(lib, name)
        if name != self._name:
            return real

        def called(*arguments: Any) -> None:
            self._count += 1
            if self._nth is not None and self._count != self._nth:
                real(*arguments)

        return called


MUTANTS = {
    "before_read: no DC CIVAC": ("before_read", "pyvmm_dc_civac", None),
    "before_write: no DC CIVAC of the first line": ("before_write", "pyvmm_dc_civac", 1),
    "before_write: no DC CIVAC of the last line": ("before_write", "pyvmm_dc_civac", 2),
    "after_write: no DC CVAC": ("after_write", "pyvmm_dc_cvac", None),
}
"""The ledger's four uses of cache maintenance."""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_use_of_maintenance_that_is_left_out_is_noticed(
    mutant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, name, nth = MUTANTS[mutant]
    whole = getattr(Ledger, method)
    without = Without(name, nth)

    def mutated(self: Ledger, address: int, view: memoryview) -> None:
        without.again()
        with monkeypatch.context() as patch:
            patch.setattr(ledger_module, "lib", without)
            whole(self, address, view)

    monkeypatch.setattr(Ledger, method, mutated)
    fallen = []
    for check in CHECKS:
        try:
            check()
        except AssertionError:
            fallen.append(check.__name__)
    assert fallen, f"no test noticed: {mutant}"


# --- any order of accesses ---------------------------------------------------------------------

ACCESSES = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "guest_reads", "guest_writes"]),
        st.integers(0, 6 * LINE),
        st.integers(1, 3 * LINE),
        st.integers(0, 2),
    ),
    max_size=12,
)


Access = tuple[str, int, int, int]
"""A name, an offset and a size in bytes, and the byte that is written."""


def disagreement(accesses: list[Access]) -> bool:
    """Return whether any access of *accesses*, one after the other, saw old bytes."""
    model = bytearray(SIZE)
    with two_copies() as both:
        for what, at, size, byte in accesses:
            if "write" in what:
                data = bytes([byte]) * size
                getattr(both, what)(at, data)
                model[at : at + size] = data
            elif getattr(both, what)(at, size) != model[at : at + size]:
                return True
        return both.guest_reads(0, SIZE) != model
    return False


@given(ACCESSES)
def test_in_any_order_both_sides_agree(accesses: list[Access]) -> None:
    assert not disagreement(accesses)


@pytest.mark.parametrize("method", ["before_read", "before_write", "after_write"])
def test_some_order_shows_each_method_that_is_missing(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ledger, method, lambda *_: None)
    seen: list[bool] = []

    @settings(suppress_health_check=list(HealthCheck), max_examples=300, database=None)
    @given(ACCESSES)
    def look(accesses: list[Access]) -> None:
        seen.append(disagreement(accesses))

    look()
    assert any(seen)


def test_coherent_memory_has_one_copy_and_needs_no_maintenance() -> None:
    """The ledger owes nothing there, so it calls nothing: only one mapping can be right."""
    ledger = Ledger([entry(Stage1.CACHEABLE, Stage2.FORCED_WRITE_BACK, BASE, SIZE)])
    with TwoCopies(SIZE) as copies:
        copies.memory[0:5] = b"guest"
        ledger.before_read(BASE, copies.view)
        assert bytes(copies.view[0:5]) == bytes(5)


def test_a_range_that_is_closed_is_ordinary_memory_again() -> None:
    with TwoCopies(SIZE) as first, TwoCopies(SIZE) as second:
        first.close()
        second.memory[0:1] = b"x"
        second.first_map()
        assert bytes(second.view[0:1]) == b"x"
