"""Flash as drivers use it, and as no driver does."""

from __future__ import annotations

import errno
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recorded import Recorded
from vmm.devices.cfi import BUFFER_WORDS, COMMANDS, QUERY, Cycle, Status, View
from vmm.devices.cfi_flash import BLOCK, SIZE, CfiFlash
from vmm.events import COMPLAINTS

READY = Status.READY
ERASED = 0xFFFF_FFFF


class Cells:
    """A bank's contents: erased where nothing was written. Refuse writes when it is full."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        self.broken = False
        self.writes: list[tuple[int, bytes, bytes]] = []

    def read(self, offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= SIZE
        return bytes(self.bytes.get(at, 0xFF) for at in range(offset, offset + size))

    def write(self, offset: int, data: bytes) -> None:
        if self.broken:
            raise OSError(errno.ENOSPC, "full")
        self.writes.append((offset, self.read(offset, len(data)), data))
        if data == b"\xff" * BLOCK:
            self.bytes = {
                at: byte for at, byte in self.bytes.items() if not 0 <= at - offset < BLOCK
            }
        else:
            self.bytes.update(enumerate(data, offset))


class Driver:
    """Access flash as edk2's and Linux's drivers do: 32 bits, each command to both chips."""

    def __init__(self, *, read_only: bool = False) -> None:
        self.cells, self.events = Cells(), Recorded()
        self.flash = CfiFlash("bank", self.cells, self.events, read_only=read_only)
        self.modes: list[bool] = []
        self.flash.on_array = self.modes.append

    def command(self, value: int, at: int = 0) -> None:
        self.flash.write(at, 4, value << 16 | value)

    def load(self, at: int) -> int:
        return self.flash.read(at, 4)

    def both(self, address: int) -> int:
        """Return the word at *address*, which must be the same from both chips."""
        value = self.load(address * 4)
        assert value >> 16 == value & 0xFFFF
        return value & 0xFFFF

    def status(self) -> int:
        self.command(0x70)
        return self.both(0)

    def program(self, at: int, value: int) -> int:
        self.command(0x40, at)
        self.flash.write(at, 4, value)
        return self.status()

    def program_buffer(self, at: int, values: list[int], block: int | None = None) -> int:
        self.command(0xE8, at if block is None else block)
        assert self.both(0) & READY
        self.command(len(values) - 1, at)
        for number, value in enumerate(values):
            self.flash.write(at + 4 * number, 4, value)
        self.command(0xD0)  # where edk2 does: not in the block
        return self.status()

    def erase(self, at: int) -> int:
        self.command(0x20, at)
        self.command(0xD0, at)
        return self.status()

    def array(self) -> None:
        self.command(0xFF)

    def names(self) -> list[str]:
        return [name for name, _ in self.events.seen]


@pytest.fixture
def driver() -> Driver:
    return Driver()


# --- what loads see -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "value"), [(1, 0x11), (2, 0x2211), (4, 0x44332211), (8, 0x8877665544332211)]
)
def test_the_array_is_read_at_any_width(driver: Driver, size: int, value: int) -> None:
    driver.cells.bytes = dict(enumerate(b"\x11\x22\x33\x44\x55\x66\x77\x88", 0x100))
    assert driver.flash.read(0x100, size) == value


def test_the_query_table_describes_this_bank(driver: Driver) -> None:
    """As Linux's cfi_probe and U-Boot's flash_get_size read it (JESD68)."""
    driver.command(0x98, 0x55 * 4)
    table = [driver.both(address) for address in range(0x60)]
    assert bytes(table[0x10:0x13]) == b"QRY"
    assert table[0x13] | table[0x14] << 8 == 1, "Intel's command set"
    assert 2 << table[0x27] == SIZE
    assert table[0x2C] == 1
    blocks = (table[0x2D] | table[0x2E] << 8) + 1
    assert (table[0x2F] | table[0x30] << 8) * 256 * 2 == BLOCK
    assert blocks * BLOCK == SIZE
    assert 1 << (table[0x2A] | table[0x2B] << 8) == 2 * BUFFER_WORDS
    extended = table[0x15] | table[0x16] << 8
    assert bytes(table[extended : extended + 3]) == b"PRI"
    assert bytes(table[extended + 3 : extended + 5]) in (b"10", b"11"), "versions that Linux takes"
    assert max(QUERY) < extended + 15


def test_who_probes_with_narrow_stores_finds_one_chip_with_gaps(driver: Driver) -> None:
    """U-Boot does, from 8 bits on; at 16 bits, with all addresses doubled, it finds something."""
    for at, size, value in ((0x55, 1, 0x98), (0xAA, 2, 0x98), (0x154, 2, 0x98)):
        driver.flash.write(0, size, 0xF0)
        driver.flash.write(0, size, 0xFF)
        driver.flash.write(at, size, value)
    assert [driver.flash.read(at, 2) for at in (0x40, 0x44, 0x48)] == list(b"QRY")
    assert [driver.flash.read(at, 1) for at in (0x40, 0x41, 0x42, 0x43)] == [0x51, 0, 0x51, 0]
    driver.flash.write(0, 2, 0xFF)
    assert driver.load(0x40) == ERASED


def test_identifiers_and_locks(driver: Driver) -> None:
    driver.command(0x60, BLOCK)
    driver.command(0x01, BLOCK)
    driver.command(0x90)
    assert (driver.both(0), driver.both(1)) == (0x89, 0x1D)
    assert driver.load(2 * 4) == 0
    assert driver.load(BLOCK + 2 * 4) == 0x1_0001
    assert driver.load(2 * BLOCK + 2 * 4) == 0


# --- programming and erasing --------------------------------------------------------------------


@given(st.lists(st.integers(0, ERASED), min_size=1, max_size=8))
def test_programming_only_ever_clears_bits(values: list[int]) -> None:
    driver, expected = Driver(), ERASED
    for value in values:
        assert driver.program(0x40, value) == READY
        expected &= value
    driver.array()
    assert driver.load(0x40) == expected
    assert driver.load(0x3C) == driver.load(0x44) == ERASED
    assert not driver.events.seen


def test_loads_after_a_program_command_show_the_status(driver: Driver) -> None:
    driver.command(0x40, 0x80)
    driver.flash.write(0x80, 4, 0)
    assert driver.both(0x20) == READY, "until they are asked for the array"
    driver.command(0x50)
    assert driver.both(0x20) == READY, "clearing the status changes nothing about that"


@given(st.lists(st.integers(0, ERASED), min_size=1, max_size=BUFFER_WORDS))
def test_a_buffer_is_programmed_at_once(values: list[int]) -> None:
    driver = Driver()
    driver.program(BLOCK + 4, 0x0F0F_0F0F)
    driver.cells.writes.clear()
    assert driver.program_buffer(BLOCK, values) == READY
    assert len(driver.cells.writes) == 1
    driver.array()
    old = {1: 0x0F0F_0F0F}
    found = [driver.load(BLOCK + 4 * number) for number in range(len(values))]
    assert found == [value & old.get(number, ERASED) for number, value in enumerate(values)]


def test_erasing_sets_all_bits_of_one_block(driver: Driver) -> None:
    inside = (BLOCK, 2 * BLOCK - 4)
    outside = (BLOCK - 4, 2 * BLOCK)
    for at in (*inside, *outside):
        driver.program(at, 0)
    assert driver.erase(BLOCK + 0x1234) == READY
    driver.array()
    assert [driver.load(at) for at in inside] == [ERASED, ERASED]
    assert [driver.load(at) for at in outside] == [0, 0]


def test_the_last_words_are_like_all_others(driver: Driver) -> None:
    assert driver.program_buffer(SIZE - 8, [1, 2]) == READY
    assert driver.program(SIZE - 4, 0) == READY
    driver.array()
    assert driver.flash.read(SIZE - 8, 8) == 1
    assert driver.erase(SIZE - 4) == READY


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lock", "read-only"])
def test_a_locked_block_does_not_change(how: str) -> None:
    driver = Driver(read_only=how == "read-only")
    driver.command(0x60, BLOCK)
    driver.command(0x01, BLOCK)
    assert driver.status() == READY
    assert driver.program(BLOCK, 0) == READY | Status.LOCKED | Status.PROGRAM_ERROR
    driver.command(0x50)
    assert driver.status() == READY
    assert driver.program_buffer(BLOCK, [0]) == READY | Status.LOCKED | Status.PROGRAM_ERROR
    driver.command(0x50)
    assert driver.erase(BLOCK) == READY | Status.LOCKED | Status.ERASE_ERROR
    driver.command(0x50)
    assert not driver.cells.writes
    driver.command(0x60, BLOCK)
    driver.command(0xD0, BLOCK)
    opened = driver.status() == READY
    assert opened == (how == "lock")
    driver.command(0x50)
    assert (driver.program(BLOCK, 0) == READY) == opened


@pytest.mark.parametrize("locked", [0, 1])
def test_a_store_across_blocks_heeds_both_locks(driver: Driver, locked: int) -> None:
    driver.command(0x60, locked * BLOCK)
    driver.command(0x01, locked * BLOCK)
    driver.command(0x40)
    driver.flash.write(BLOCK - 2, 4, 0)
    assert driver.status() == READY | Status.LOCKED | Status.PROGRAM_ERROR
    assert not driver.cells.writes


def test_a_host_that_cannot_keep_it_is_an_error_the_guest_sees(driver: Driver) -> None:
    driver.program(0, 0x55AA)
    driver.cells.broken = True
    assert driver.program(0, 0) == READY | Status.PROGRAM_ERROR
    assert driver.erase(0) == READY | Status.PROGRAM_ERROR | Status.ERASE_ERROR, "it stays"
    driver.array()
    assert driver.load(0) == 0x55AA
    assert driver.names() == ["flash-write-failed"] * 2
    assert driver.events.seen[0][1]["error"] == "No space left on device"


@pytest.mark.parametrize(
    "stores",
    [
        [(0x20, 0), (0x50, 0)],
        [(0x60, 0), (0x03, 0)],
        [(0xE8, 0), (BUFFER_WORDS, 0)],
        [(0xE8, 0), (0, 0), (0, 0), (0xFF, 0)],
        [(0xE8, 0), (0, 0), (0, BLOCK), (0xD0, 0)],
        [(0xE8, 0), (1, 0), (0, BLOCK - 4), (0, BLOCK), (0xD0, 0)],
    ],
    ids=["erase", "lock", "count", "confirm", "other block", "two blocks"],
)
def test_a_broken_sequence_changes_nothing_but_the_status(
    driver: Driver, stores: list[tuple[int, int]]
) -> None:
    for value, at in stores:
        driver.command(value, at)
    assert driver.status() == READY | Status.SEQUENCE_ERROR
    assert not driver.cells.writes
    assert driver.names() == ["flash-bad-sequence"]
    driver.command(0x50)
    assert driver.program(0, 0) == READY


def test_linux_asks_for_identifiers_as_if_it_might_be_amds(driver: Driver) -> None:
    for at, command in ((0, 0xF0), (0x555, 0xAA), (0x2AA, 0x55), (0x555, 0x90)):
        driver.command(command, at * 4)
    assert (driver.both(0), driver.both(1)) == (0x89, 0x1D)
    assert not driver.events.seen


def test_an_unknown_command_is_dropped_and_said(driver: Driver) -> None:
    driver.command(0x98)
    driver.command(0x42, 0x1000)
    assert driver.both(0x10) == ord("Q")
    assert driver.events.seen == [
        ("flash-bad-command", {"flash": "bank", "offset": 0x1000, "command": 0x42})
    ]


# --- array mode, which needs no exits -----------------------------------------------------------


def test_who_shows_the_array_hears_of_each_change(driver: Driver) -> None:
    driver.array()
    assert driver.modes == [], "it was so before"
    driver.program(0, 0)
    driver.program_buffer(0, [0])
    assert driver.modes == [False]
    driver.array()
    assert driver.modes == [False, True]
    driver.command(0x42)
    assert driver.modes == [False, True]


@pytest.mark.parametrize("stores", [[0x98], [0x40], [0xE8, 1, 5], [0x20], [0x60], [0x60, 0x01]])
def test_a_reset_ends_whatever_was_going_on(driver: Driver, stores: list[int]) -> None:
    for value in stores:
        driver.command(value)
    driver.flash.reset()
    assert driver.modes == [False, True]
    assert driver.load(0) == ERASED
    assert driver.program(0, 0) == READY


def test_every_command_is_one_that_a_load_or_a_store_completes() -> None:
    """All commands that leave COMMAND show the status, and only FF and F0 show the array."""
    for command, (view, cycle) in COMMANDS.items():
        assert cycle is Cycle.COMMAND or view is View.STATUS
        assert (view is View.ARRAY) == (command in (0xFF, 0xF0))


SIZES = st.sampled_from([1, 2, 4, 8])
COMMON = st.sampled_from(sorted({*COMMANDS, 0x50, 0x01, 0, 2, 3}))
VALUES = COMMON | COMMON.map(lambda each: each * 0x1_0001) | st.integers(0, (1 << 64) - 1)
OFFSETS = st.sampled_from([0, 1, 2, 4, BLOCK - 4, BLOCK - 1, BLOCK, SIZE - 8]) | st.integers(
    0, SIZE - 8
)
STORES = st.lists(st.tuples(OFFSETS, SIZES, VALUES), max_size=60)


@given(STORES, st.lists(st.tuples(OFFSETS, SIZES), min_size=1, max_size=5), st.booleans())
def test_whatever_a_guest_stores_it_changes_only_what_flash_can(
    stores: list[tuple[int, int, int]],
    loads: list[tuple[int, int]],
    read_only: bool,  # noqa: FBT001
) -> None:
    driver = Driver(read_only=read_only)
    for offset, size, value in stores:
        driver.flash.write(min(offset, SIZE - size), size, value & (1 << 8 * size) - 1)
        for at, width in loads:
            assert 0 <= driver.flash.read(at, width) < 1 << 8 * width
    for offset, before, after in driver.cells.writes:
        if after == b"\xff" * BLOCK:
            assert offset % BLOCK == 0
        else:
            assert all(new & ~old == 0 for old, new in zip(before, after, strict=True))
    assert not (read_only and driver.cells.writes)
    assert max(Counter(driver.names()).values(), default=0) <= COMPLAINTS
    assert driver.modes == [bool(number % 2) for number in range(len(driver.modes))]
    # And who sends read-array often enough gets the array: a buffer swallows most of them.
    for _ in range(BUFFER_WORDS + 3):
        driver.array()
    assert driver.load(0x100) == int.from_bytes(driver.cells.read(0x100, 4), "little")
    assert not driver.modes or driver.modes[-1]


def test_a_guest_cannot_complain_without_end(driver: Driver) -> None:
    for _ in range(2 * COMPLAINTS):
        driver.command(0x42)
    assert len(driver.events.seen) == COMPLAINTS
