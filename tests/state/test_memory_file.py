"""RAM in a sparse file, and back."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.coherence.ledger import Entry, Ledger
from vmm.coherence.policy import MANAGED, Promise, Stage2
from vmm.coherence.sanitizer import TwoCopies
from vmm.long_work import at_once
from vmm.memory import Backing, Mapping
from vmm.state import memory_file
from vmm.state.memory_file import PAGE, PIECE

BASE = 0x4000_0000
SIZE = PIECE + 5 * PAGE


def ledger(stage2: Stage2) -> Ledger:
    promise = Promise(stage2, "a test")
    return Ledger([Entry("RAM", BASE, SIZE, Backing.ANONYMOUS, MANAGED, promise, 0)])


PAGES = st.sets(st.integers(0, SIZE // PAGE - 1), max_size=40)


@pytest.mark.parametrize("kind", [Mapping.anonymous, Mapping.memfd])
@settings(max_examples=30)
@given(pages=PAGES)
def test_what_was_written_comes_back(kind: object, pages: set[int]) -> None:
    with ExitStack() as owned:
        first = owned.enter_context(kind(SIZE))  # type: ignore[operator]
        for page in pages:
            first.view[page * PAGE + page % PAGE] = page % 255 + 1
        fd = os.memfd_create("memory")
        owned.callback(os.close, fd)
        written = at_once(
            memory_file.write(fd, first.region(BASE), ledger(Stage2.FORCED_WRITE_BACK))
        )
        assert written.stored == len(pages) * PAGE
        assert written.maintained == 0
        assert os.fstat(fd).st_size == SIZE
        assert os.fstat(fd).st_blocks * 512 <= len(pages) * PAGE, "zeroes are holes"
        assert memory_file.checksum_of(fd, SIZE) == written.sha256
        second = owned.enter_context(kind(SIZE))  # type: ignore[operator]
        second.load(fd)
        assert second.view == first.view
        second.view[: 2 * PAGE] = b"x" * (2 * PAGE)
        assert memory_file.checksum_of(fd, SIZE) == written.sha256, "the file is not written"
        second.discard()
        assert second.view == bytes(SIZE), "after a reset nothing of the file is left"


@settings(max_examples=30)
@given(pages=PAGES.filter(bool), at=st.integers(0, PAGE - 1))
def test_the_checksum_tells_a_changed_byte(pages: set[int], at: int) -> None:
    with Mapping.anonymous(SIZE) as ram, ExitStack() as owned:
        for page in pages:
            ram.view[page * PAGE] = 1
        fd = os.memfd_create("memory")
        owned.callback(os.close, fd)
        written = at_once(memory_file.write(fd, ram.region(BASE), ledger(Stage2.FORCED_WRITE_BACK)))
        where = min(pages) * PAGE + at
        (byte,) = os.pread(fd, 1, where)
        os.pwrite(fd, bytes([byte ^ 0x80]), where)
        assert memory_file.checksum_of(fd, SIZE) != written.sha256


def test_a_guest_without_caches_is_seen_because_of_the_maintenance(tmp_path: Path) -> None:
    """The guest's copy and ours differ until the line is invalidated; restored, it sees all."""
    with TwoCopies(SIZE) as ram, ExitStack() as owned:
        region = ram.region(BASE)
        ram.memory[3 * PAGE : 3 * PAGE + 5] = b"guest"
        fd = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)
        owned.callback(os.close, fd)
        written = at_once(memory_file.write(fd, region, ledger(Stage2.GUEST_DECIDES)))
        assert written.maintained == SIZE
        assert os.pread(fd, 5, 3 * PAGE) == b"guest"
    with TwoCopies(SIZE) as ram:
        fd = os.open(tmp_path / "memory", os.O_RDONLY)
        ram.load(fd)
        os.close(fd)
        assert bytes(ram.memory[3 * PAGE : 3 * PAGE + 5]) == bytes(5), "not yet mapped"
        ram.first_map()
        assert bytes(ram.memory[3 * PAGE : 3 * PAGE + 5]) == b"guest"
