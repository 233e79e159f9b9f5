"""The PL061: its registers, keys, and what interrupts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.devices import pl061
from vmm.devices.pl061 import (
    GPIODIR,
    GPIOIBE,
    GPIOIE,
    GPIOIEV,
    GPIOIS,
    GPIOMIS,
    GPIORIS,
    PRESSED,
    RESET,
    Pl061,
    Pl061State,
)

KEY = 3
BIT = 1 << KEY
ALL = 0xFF << 2
"""The offset of DATA at which each line is touched."""


class Board:
    """The device's interrupt line, and a loop whose time tests advance."""

    def __init__(self) -> None:
        self.level = False
        self.due: list[tuple[float, Callable[[], object]]] = []
        self.gpio = Pl061(self, self.call_later)

    def set_level(self, level: bool) -> None:  # noqa: FBT001  (the protocol's)
        assert level != self.level, "a level that is already there"
        self.level = level

    def call_later(self, delay: float, callback: Callable[[], object]) -> Board:
        self.due.append((delay, callback))
        return self

    def cancel(self) -> None:
        raise AssertionError("a key is always let go of")

    def let_go(self) -> None:
        ((delay, callback),) = self.due
        assert delay == PRESSED
        self.due.clear()
        callback()

    def store(self, **values: int) -> None:
        for name, value in values.items():
            self.gpio.write(getattr(pl061, f"GPIO{name}"), 4, value)

    def load(self, offset: int) -> int:
        return self.gpio.read(offset, 4)


@pytest.fixture
def board() -> Board:
    return Board()


def test_it_is_a_pl061(board: Board) -> None:
    found = [board.load(0xFE0 + 4 * number) for number in range(8)]
    assert found == [0x61, 0x10, 0x04, 0x00, 0x0D, 0xF0, 0x05, 0xB1]  # DDI 0190, 3.3.12-13
    assert [board.load(offset) for offset in range(0x400, 0x424, 4)] == [0] * 9


@given(mask=st.integers(0, 255), before=st.integers(0, 255), value=st.integers(0, 255))
def test_the_address_chooses_the_lines(mask: int, before: int, value: int) -> None:
    """DDI 0190, 2.2.2: what is not in the mask is not changed by a store, and loads as 0."""
    board = Board()
    board.store(DIR=0xFF)
    board.gpio.write(ALL, 4, before)
    board.gpio.write(mask << 2, 4, value)
    assert board.load(ALL) == (before & ~mask) | (value & mask)
    assert board.load(mask << 2) == value & mask


def test_a_key_is_pressed_and_let_go_of(board: Board) -> None:
    assert not board.gpio.press(KEY), "nobody listens"
    assert board.load(ALL) == BIT
    board.let_go()
    assert board.load(ALL) == 0
    assert not board.level


@pytest.mark.parametrize(
    ("both", "event", "edges"),
    [(BIT, 0, [True, True]), (0, BIT, [True, False]), (0, 0, [False, True])],
)
def test_edges_interrupt_as_the_guest_wants(
    board: Board, both: int, event: int, edges: list[bool]
) -> None:
    board.store(IBE=both, IEV=event, IE=BIT)
    assert board.gpio.press(KEY)
    for edge in edges:
        assert board.level is edge
        assert (board.load(GPIORIS), board.load(GPIOMIS)) == ((BIT, BIT) if edge else (0, 0))
        board.store(IC=BIT)
        assert not board.level
        if board.due:
            board.let_go()


def test_an_edge_waits_until_it_is_enabled_or_cleared(board: Board) -> None:
    board.store(IEV=BIT)
    board.gpio.press(KEY)
    board.let_go()
    assert (board.load(GPIORIS), board.load(GPIOMIS), board.level) == (BIT, 0, False)
    board.store(IE=BIT)
    assert board.level
    board.store(IC=0xFF & ~BIT)
    assert board.level, "another line was cleared"
    board.store(IC=BIT)
    assert not board.level


def test_a_level_interrupts_as_long_as_it_lasts(board: Board) -> None:
    board.store(IS=BIT, IEV=BIT, IE=BIT)
    board.gpio.press(KEY)
    assert board.level
    board.store(IC=BIT)
    assert board.level, "a level is not cleared"
    board.let_go()
    assert not board.level


def test_a_line_that_is_an_output_shows_what_was_stored(board: Board) -> None:
    board.store(DIR=BIT)
    board.gpio.press(KEY)
    assert board.load(ALL) == 0
    board.store(DIR=0)
    assert board.load(ALL) == BIT


def test_its_state_goes_on_elsewhere(board: Board) -> None:
    board.store(DIR=1, IS=2, IBE=BIT, IEV=4, IE=BIT)
    board.gpio.write(ALL, 4, 1)
    board.gpio.press(KEY)
    board.let_go()
    other = Board()
    other.gpio.restore(board.gpio.state())
    assert other.gpio.state() == board.gpio.state() != RESET
    assert other.level
    for offset in (ALL, GPIODIR, GPIOIS, GPIOIBE, GPIOIEV, GPIOIE, GPIORIS):
        assert other.load(offset) == board.load(offset)
    other.gpio.reset()
    assert other.gpio.state() == RESET
    assert not other.level


@given(st.lists(st.tuples(st.integers(0, 0xFFF), st.integers(0, (1 << 64) - 1))))
def test_whatever_a_guest_stores_its_registers_are_bytes(
    stores: list[tuple[int, int]],
) -> None:
    board = Board()
    for offset, value in stores:
        board.gpio.write(offset, 8, value)
        assert 0 <= board.load(offset) <= 0xFF
    assert all(0 <= value <= 0xFF for value in board.gpio.state().registers.values())


def test_a_state_of_other_registers_is_refused(board: Board) -> None:
    with pytest.raises(ValueError, match="registers: GPIOX, not GPIODATA, GPIODIR"):
        board.gpio.restore(Pl061State({"GPIOX": 1}))
