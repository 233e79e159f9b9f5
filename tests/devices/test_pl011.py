"""The PL011, driven as its drivers drive it: by Python alone, and with C's fast path beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.devices.pl011 import (
    CR_LBE,
    CR_OUT1,
    CR_OUT2,
    CR_RTS,
    CR_RXE,
    CR_UARTEN,
    DR_BE,
    DR_OE,
    FIFO_DEPTH,
    FR_CTS,
    FR_DCD,
    FR_DSR,
    FR_RI,
    FR_RXFE,
    FR_RXFF,
    FR_TXFE,
    FR_TXFF,
    INT_BE,
    INT_CTS,
    INT_DSR,
    INT_OE,
    INT_RI,
    INT_RT,
    INT_RX,
    INT_TX,
    LCR_H_FEN,
    SETTLE,
    SIZE,
    UARTCR,
    UARTDMACR,
    UARTDR,
    UARTFBRD,
    UARTFR,
    UARTIBRD,
    UARTICR,
    UARTIFLS,
    UARTILPR,
    UARTIMSC,
    UARTLCR_H,
    UARTMIS,
    UARTRIS,
    UARTRSR,
    Pl011,
)

if TYPE_CHECKING:
    from collections.abc import Callable

BUSY = 1 << 3
RECEIVER_ON = CR_UARTEN | CR_RXE


@dataclass
class Wire:
    levels: list[bool] = field(default_factory=list)

    def set_level(self, level: bool) -> None:  # noqa: FBT001  (the protocol's signature)
        self.levels.append(level)

    @property
    def level(self) -> bool:
        return bool(self.levels) and self.levels[-1]


@dataclass
class Ring:
    """A transmitter that is full at *full_at* bytes, with FIFO_DEPTH more to spare."""

    full_at: int = 1 << 16
    written: int = 0
    waiting: bytearray = field(default_factory=bytearray)

    def full(self) -> bool:
        return len(self.waiting) >= self.full_at

    def put(self, byte: int) -> None:
        assert len(self.waiting) < self.full_at + FIFO_DEPTH, "the guest overran the ring"
        self.waiting.append(byte)
        self.written += 1

    def drain(self, most: int) -> bytes:
        taken = bytes(self.waiting[:most])
        del self.waiting[:most]
        return taken


class Board:
    """A UART and its surroundings. With *fast* it also is the fast path, as the C run loop."""

    def __init__(self, *, fast: bool = False, full_at: int = 1 << 16) -> None:
        self.wire, self.ring = Wire(), Ring(full_at)
        self.uart = Pl011(self.wire, self.ring)
        self.fast = fast
        self.flags, self.stores = 0, False
        self.sent = bytearray()
        self.in_python = 0
        self._wakeups = 0
        self.mask = -1
        self.uart.use(self)
        self.uart.on_space = self._on_space

    def add_sink(self, offset: int) -> None:
        assert offset == UARTDR

    def add_shadow(self, offset: int, value: int, flip_when_full: int) -> None:
        assert (offset, flip_when_full) == (UARTFR, FR_TXFE | FR_TXFF)
        self.flags = value

    def add_unchanged(self, offset: int, value: int) -> None:
        assert offset == UARTIMSC
        self.mask = value

    def set_value(self, offset: int, value: int) -> None:
        assert offset in {UARTFR, UARTIMSC}
        if offset == UARTFR:
            self.flags = value
        else:
            self.mask = value

    def take_stores(self, take: bool) -> None:  # noqa: FBT001  (the protocol's signature)
        self.stores = take

    def _on_space(self) -> None:
        self._wakeups += 1

    def wakeups(self) -> int:
        return self._wakeups

    def load(self, offset: int) -> int:
        if self.fast and offset == UARTFR:
            return self.flags ^ (FR_TXFE | FR_TXFF if self.ring.full() else 0)
        self.in_python += 1
        return self.uart.read(offset, 4)

    def store(self, offset: int, value: int) -> None:
        if offset == UARTDR:
            self.sent.append(value & 0xFF)
        if self.fast and offset == UARTDR and self.stores:
            self.ring.put(value & 0xFF)
            return
        if self.fast and offset == UARTIMSC and value == self.mask:
            return
        self.in_python += 1
        self.uart.write(offset, 4, value)

    def drain(self, most: int = 1 << 20) -> bytes:
        was_full = self.ring.full()
        taken = self.ring.drain(most)
        if was_full:
            self.uart.transmit_space()
        return taken

    def open_port(self) -> None:
        """Open the port as a driver does, with FIFOs and both receive interrupts."""
        self.store(UARTLCR_H, 0x60 | LCR_H_FEN)
        self.store(UARTCR, 0x301)
        self.store(UARTIMSC, INT_RX | INT_RT)

    def read_all(self) -> bytes:
        data = bytearray()
        while not self.load(UARTFR) & FR_RXFE:
            data.append(self.load(UARTDR) & 0xFF)
        return bytes(data)


@pytest.fixture(params=[False, True], ids=["python", "fast"])
def board(request: pytest.FixtureRequest) -> Board:
    return Board(fast=request.param)


# Registers


def test_registers_read_after_reset_as_in_table_3_1(board: Board) -> None:
    reset = {UARTRSR: 0, UARTILPR: 0, UARTIBRD: 0, UARTFBRD: 0, UARTLCR_H: 0, UARTCR: 0x300}
    reset |= {UARTIFLS: 0x12, UARTIMSC: 0, UARTRIS: 0, UARTMIS: 0, UARTDMACR: 0}
    assert {offset: board.load(offset) for offset in reset} == reset
    assert board.load(UARTFR) & (FR_TXFE | FR_TXFF | FR_RXFE | FR_RXFF | BUSY) == FR_TXFE | FR_RXFE


def test_the_identification_is_that_of_a_pl011_r1p5() -> None:
    uart = Board().uart
    words = [uart.read(offset, 4) for offset in range(0xFE0, 0x1000, 4)]
    peripheral = sum(word << 8 * index for index, word in enumerate(words[:4]))
    cell = sum(word << 8 * index for index, word in enumerate(words[4:]))
    assert peripheral & 0xFFFFF == 0x41011  # what Linux's driver matches
    assert peripheral >> 20 & 0xF == 3  # and what makes it believe in 32-byte FIFOs
    assert cell == 0xB105F00D


@pytest.mark.parametrize(
    ("offset", "bits"),
    [
        (UARTILPR, 0xFF),
        (UARTIBRD, 0xFFFF),
        (UARTFBRD, 0x3F),
        (UARTLCR_H, 0xFF),
        (UARTCR, 0xFF87),
        (UARTIFLS, 0x3F),
        (UARTIMSC, 0x7FF),
        (UARTDMACR, 7),
    ],
)
def test_a_register_keeps_the_bits_it_has(offset: int, bits: int) -> None:
    board = Board()
    board.store(offset, 0xFFFF_FFFF)
    assert board.load(offset) == bits


def test_a_byte_wide_load_sees_the_low_byte() -> None:
    board = Board()
    board.open_port()
    board.uart.receive_break()
    assert board.uart.read(UARTDR, 1) == 0


def test_misaligned_and_reserved_offsets_read_as_zero_and_drop_stores() -> None:
    board = Board()
    for offset in (0x1, 0x8, 0x19, 0x31, 0x4C, 0x80, 0xFE1, 0xFFF):
        board.uart.write(offset, 1, 0xFF)
        assert board.uart.read(offset, 1) == 0
    assert not board.ring.waiting


# Transmission


def test_c_is_told_the_state_as_soon_as_it_asks() -> None:
    board = Board(fast=True)
    assert board.flags == board.uart.read(UARTFR, 4)
    assert board.flags & (FR_RXFE | FR_TXFE) == FR_RXFE | FR_TXFE
    assert board.stores
    assert board.mask == board.uart.read(UARTIMSC, 4)


def test_bytes_leave_in_the_order_stored(board: Board) -> None:
    for byte in b"Hello, world\r\n":
        board.store(UARTDR, byte)
    assert board.drain() == b"Hello, world\r\n"


def test_earlycon_may_transmit_before_anybody_has_enabled_the_uart(board: Board) -> None:
    board.store(UARTCR, 0)
    board.store(UARTDR, ord("A"))
    assert board.drain() == b"A"


def test_the_fast_path_needs_no_python_per_byte() -> None:
    board = Board(fast=True)
    board.open_port()
    before = board.in_python
    for byte in bytes(1000):
        while board.load(UARTFR) & (FR_TXFF | BUSY):
            pass
        board.store(UARTDR, byte)
    assert board.in_python == before


def test_txff_is_set_while_the_ring_is_full_and_txfe_while_it_is_not(board: Board) -> None:
    board.ring.full_at = 2
    seen = []
    for byte in b"ab":
        seen.append(board.load(UARTFR) & (FR_TXFF | FR_TXFE))
        board.store(UARTDR, byte)
    seen.append(board.load(UARTFR) & (FR_TXFF | FR_TXFE))
    board.drain()
    seen.append(board.load(UARTFR) & (FR_TXFF | FR_TXFE))
    assert seen == [FR_TXFE, FR_TXFE, FR_TXFF, FR_TXFE]


def test_txris_is_low_until_something_was_sent(board: Board) -> None:
    board.store(UARTIMSC, INT_TX)
    assert not board.load(UARTRIS) & INT_TX
    assert not board.wire.level
    board.store(UARTDR, 0)
    assert board.wire.level
    assert board.load(UARTMIS) == INT_TX


def test_icr_clears_txris_until_more_is_sent(board: Board) -> None:
    board.store(UARTDR, 0)
    board.store(UARTIMSC, INT_TX)
    board.store(UARTICR, INT_TX)
    assert not board.wire.level
    board.store(UARTDR, 0)
    assert board.wire.level


def test_a_full_ring_holds_txris_down_and_draining_it_raises_it(board: Board) -> None:
    board.ring.full_at = 4
    board.store(UARTIMSC, INT_TX)
    for _ in range(4):
        board.store(UARTDR, 0)
    assert board.load(UARTRIS) == 0
    assert not board.wire.level
    board.drain(1)
    assert board.wire.level


def test_icr_while_the_ring_is_full_does_not_lose_the_interrupt_to_come(board: Board) -> None:
    board.ring.full_at = 4
    for _ in range(4):
        board.store(UARTDR, 0)
    board.store(UARTICR, 0x7FF)
    board.store(UARTIMSC, INT_TX)
    board.drain()
    assert board.wire.level


class LinuxPort:
    """The transmit side of Linux's amba-pl011, in outline."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.mask = INT_RX | INT_RT
        self.xmit = bytearray()
        self.interrupts = 0
        self.idle_interrupts = 0
        board.open_port()

    def start_tx(self, data: bytes) -> None:
        self.xmit += data
        if self._tx_chars(from_irq=False):
            self._set_mask(self.mask | INT_TX)

    def console_write(self, data: bytes, wait: Callable[[], object]) -> None:
        old = self.board.load(UARTCR)
        self.board.store(UARTCR, old | 0x101)
        for byte in data:
            while self.board.load(UARTFR) & FR_TXFF:
                wait()
            self.board.store(UARTDR, byte)
        while self.board.load(UARTFR) & BUSY:
            raise AssertionError
        self.board.store(UARTCR, old)

    def interrupt(self) -> None:
        self.interrupts += 1
        status = self.board.load(UARTRIS) & self.mask
        self.idle_interrupts += not status
        while status:
            self.board.store(UARTICR, status & ~(INT_TX | INT_RT | INT_RX))
            if status & INT_TX:
                self._tx_chars(from_irq=True)
            status = self.board.load(UARTRIS) & self.mask

    def _set_mask(self, mask: int) -> None:
        self.mask = mask
        self.board.store(UARTIMSC, mask)

    def _tx_chars(self, *, from_irq: bool) -> bool:
        count = FIFO_DEPTH // 2
        while self.xmit:
            if from_irq and count == 0:
                break
            count -= 1
            if not from_irq and self.board.load(UARTFR) & FR_TXFF:
                break
            self.board.store(UARTDR, self.xmit.pop(0))
        if not self.xmit:
            self._set_mask(self.mask & ~INT_TX)
            return False
        return True


@given(
    st.booleans(),
    st.integers(1, 64),
    st.lists(
        st.one_of(
            st.tuples(st.just("tty"), st.binary(max_size=200)),
            st.tuples(st.just("printk"), st.binary(max_size=50)),
            st.tuples(st.just("drain"), st.integers(1, 64)),
        )
    ),
)
def test_linux_loses_no_output_and_gets_no_interrupt_storm(
    fast: bool,  # noqa: FBT001
    full_at: int,
    script: list[tuple[str, bytes | int]],
) -> None:
    board = Board(fast=fast, full_at=full_at)
    port = LinuxPort(board)
    tty, seen, printed = bytearray(), bytearray(), bytearray()

    def drain(most: int = 16) -> None:
        seen.extend(board.drain(most))

    for action, argument in script:
        if isinstance(argument, int):
            drain(argument)
        elif action == "tty":
            data = bytes(byte & 0x7F for byte in argument)
            tty += data
            port.start_tx(data)
        else:
            data = bytes(byte | 0x80 for byte in argument)
            printed += data
            port.console_write(data, drain)
        if board.wire.level:
            port.interrupt()
    while port.xmit or board.ring.waiting:
        assert board.ring.waiting, "bytes wait for an interrupt that never comes"
        drain()
        if board.wire.level:
            port.interrupt()
    assert bytes(byte for byte in seen if byte < 0x80) == tty
    assert bytes(byte for byte in seen if byte >= 0x80) == printed
    # C may fill the ring behind Python's back: one look at RIS, then the line is down.
    assert port.idle_interrupts <= port.interrupts / 2 + 1
    assert not board.wire.level


# Reception


def test_what_is_received_is_read_in_order(board: Board) -> None:
    board.open_port()
    assert board.uart.receive(b"ls -l\r") == 6
    assert board.read_all() == b"ls -l\r"


def test_the_fifo_takes_32_bytes_and_asks_for_more_below_the_trigger_level(board: Board) -> None:
    board.open_port()
    assert board.uart.receive(bytes(range(100))) == FIFO_DEPTH
    assert board.load(UARTFR) & FR_RXFF
    for _ in range(FIFO_DEPTH // 2):
        assert not board.wakeups()
        board.load(UARTDR)
    board.load(UARTDR)
    assert board.wakeups() == 1
    assert board.uart.receive(bytes(range(32, 100))) == FIFO_DEPTH // 2 + 1
    assert board.read_all() == bytes(range(17, 49))


def test_nobody_is_told_of_room_who_did_not_ask(board: Board) -> None:
    board.open_port()
    board.uart.receive(bytes(FIFO_DEPTH))
    board.read_all()
    assert not board.wakeups()


def test_without_fifos_one_byte_is_held(board: Board) -> None:
    board.open_port()
    board.store(UARTLCR_H, 0x60)
    assert board.uart.receive(b"ab") == 1
    assert board.load(UARTRIS) & (INT_RX | INT_RT) == INT_RX | INT_RT
    assert board.load(UARTDR) == ord("a")
    assert board.wakeups() == 1


def test_enabling_the_fifos_makes_room(board: Board) -> None:
    board.open_port()
    board.store(UARTLCR_H, 0x60)
    assert board.uart.receive(b"ab") == 1
    board.store(UARTLCR_H, 0x60 | LCR_H_FEN)
    assert board.wakeups() == 1


@pytest.mark.parametrize(("level", "trigger"), list(enumerate((4, 8, 16, 24, 28))))
def test_rxris_rises_at_the_trigger_level_and_falls_below_it(level: int, trigger: int) -> None:
    board = Board()
    board.open_port()
    board.store(UARTIFLS, level << 3)
    board.uart.receive(bytes(trigger - 1))
    assert not board.load(UARTRIS) & INT_RX
    board.uart.receive(b"!")
    assert board.load(UARTRIS) & INT_RX
    board.load(UARTDR)
    assert not board.load(UARTRIS) & INT_RX


def test_a_single_byte_raises_the_receive_timeout_interrupt_until_it_is_read(board: Board) -> None:
    board.open_port()
    board.uart.receive(b"x")
    assert board.wire.level
    assert board.load(UARTMIS) == INT_RT
    board.load(UARTDR)
    assert not board.wire.level


def test_icr_cannot_hide_bytes_that_still_wait(board: Board) -> None:
    board.open_port()
    board.uart.receive(b"x")
    board.store(UARTICR, 0x7FF)
    assert board.wire.level


def test_imsc_masks_an_interrupt_without_forgetting_it(board: Board) -> None:
    board.open_port()
    board.store(UARTIMSC, 0)
    board.uart.receive(b"x")
    assert not board.wire.level
    assert (board.load(UARTRIS), board.load(UARTMIS)) == (INT_RT, 0)
    board.store(UARTIMSC, INT_RT)
    assert board.wire.level


def test_a_break_is_one_zero_with_a_flag_ahead_of_what_follows(board: Board) -> None:
    board.open_port()
    assert board.uart.receive_break()
    board.uart.receive(b"h")
    assert board.load(UARTRIS) & INT_BE
    assert board.load(UARTDR) == DR_BE
    assert board.load(UARTRSR) == DR_BE >> 8
    assert board.load(UARTDR) == ord("h")
    assert board.load(UARTRSR) == 0
    board.store(UARTICR, INT_BE)
    assert board.load(UARTRIS) == 0


def test_a_break_waits_for_room(board: Board) -> None:
    board.open_port()
    board.uart.receive(bytes(FIFO_DEPTH))
    assert not board.uart.receive_break()
    board.read_all()
    assert board.wakeups() == 1
    assert board.uart.receive_break()


def test_writing_ecr_clears_the_errors(board: Board) -> None:
    board.open_port()
    board.uart.receive_break()
    board.load(UARTDR)
    board.store(UARTRSR, 0xFF)
    assert board.load(UARTRSR) == 0


def test_nothing_is_received_while_the_receiver_is_off(board: Board) -> None:
    assert board.uart.receive(b"x") == 0
    board.store(UARTCR, CR_RXE)
    assert board.uart.receive(b"x") == 0
    board.store(UARTCR, CR_UARTEN)
    assert board.uart.receive(b"x") == 0
    assert not board.wakeups()
    board.store(UARTCR, RECEIVER_ON)
    assert board.wakeups() == 1
    assert board.uart.receive(b"x") == 1


@dataclass
class Clock:
    """A clock that tests advance, with the loop's `call_later`."""

    now: float = 1000.0
    timers: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Clock:
        self.timers.append((self.now + seconds, callback))
        return self

    def cancel(self) -> None:
        raise AssertionError

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer[0] <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for _, callback in due:
            callback()


@pytest.fixture
def settling() -> tuple[Board, Clock]:
    board, clock = Board(), Clock()
    board.uart = Pl011(board.wire, board.ring, call_later=clock.call_later, clock=clock)
    board.uart.on_space = board._on_space
    return board, clock


def test_linux_opening_the_port_discards_nothing(settling: tuple[Board, Clock]) -> None:
    board, _ = settling
    assert board.uart.receive(b"script") == 0
    board.store(UARTIMSC, INT_RX | INT_RT)  # pl011_hwinit, lest an NMI be missed
    board.store(UARTIMSC, 0)
    board.store(UARTLCR_H, 0x60 | LCR_H_FEN)
    board.store(UARTCR, 0x301)
    assert board.uart.receive(b"script") == 0
    board.store(UARTICR, INT_RX | INT_RT)
    assert board.read_all() == b""  # it would be thrown away
    assert not board.wakeups()
    board.store(UARTIMSC, INT_RX | INT_RT)
    assert board.wakeups() == 1
    assert board.uart.receive(b"script") == 6
    board.store(UARTIMSC, 0)  # throttled
    assert board.uart.receive(b"more") == 4
    assert board.read_all() == b"scriptmore"


def test_a_guest_that_polls_gets_its_input_a_little_later(settling: tuple[Board, Clock]) -> None:
    board, clock = settling
    board.store(UARTLCR_H, 0x60 | LCR_H_FEN)
    board.store(UARTCR, 0x301)
    assert board.uart.receive(b"script") == 0
    assert not board.uart.receive_break()
    assert len(clock.timers) == 1
    clock.advance(SETTLE)
    assert board.wakeups() == 1
    assert board.uart.receive(b"script") == 6
    assert not clock.timers


def test_a_driver_that_unmasks_before_it_enables_waits_for_nothing(
    settling: tuple[Board, Clock],
) -> None:
    board, _ = settling
    board.uart.receive(b"x")
    board.store(UARTIMSC, INT_RX)
    board.store(UARTCR, 0x301)
    assert board.wakeups() == 1
    assert board.uart.receive(b"x") == 1


def test_a_boot_message_that_switches_the_uart_on_for_a_line_lets_nothing_in(
    settling: tuple[Board, Clock],
) -> None:
    board, clock = settling
    board.uart.receive(b"script")
    for _ in range(10):
        board.store(UARTCR, RECEIVER_ON)
        clock.advance(SETTLE / 2)
        board.store(UARTCR, CR_RXE)
    clock.advance(10 * SETTLE)
    assert not board.wakeups()
    board.store(UARTCR, RECEIVER_ON)
    clock.advance(SETTLE)
    assert board.wakeups() == 1


# Loopback and modem


def test_loopback_returns_what_is_sent_and_sends_nothing(board: Board) -> None:
    board.open_port()
    board.store(UARTCR, RECEIVER_ON | CR_LBE)
    for byte in b"echo":
        board.store(UARTDR, byte)
    assert board.uart.receive(b"from outside") == 0
    assert board.load(UARTRIS) & INT_TX
    assert board.read_all() == b"echo"
    assert board.drain() == b""
    board.store(UARTCR, RECEIVER_ON)
    assert board.wakeups() == 1


def test_a_loop_that_is_not_read_overruns(board: Board) -> None:
    board.store(UARTLCR_H, LCR_H_FEN)
    board.store(UARTCR, RECEIVER_ON | CR_LBE)
    for byte in range(FIFO_DEPTH + 2):
        board.store(UARTDR, byte)
    assert board.load(UARTRIS) & INT_OE
    assert board.load(UARTRSR) & DR_OE >> 8
    assert [board.load(UARTDR) for _ in range(FIFO_DEPTH)] == list(range(FIFO_DEPTH))
    for _ in range(2):
        board.store(UARTDR, 0x55)
    assert [board.load(UARTDR), board.load(UARTDR)] == [DR_OE | 0x55, 0x55]


def test_somebody_is_always_at_the_other_end(board: Board) -> None:
    assert board.load(UARTFR) & (FR_CTS | FR_DSR | FR_DCD | FR_RI) == FR_CTS | FR_DSR | FR_DCD


def test_loopback_connects_the_modem_outputs_to_its_inputs(board: Board) -> None:
    board.store(UARTCR, CR_LBE | CR_OUT1 | CR_OUT2)
    assert board.load(UARTFR) & (FR_CTS | FR_DSR | FR_DCD | FR_RI) == FR_DCD | FR_RI
    assert board.load(UARTRIS) == INT_CTS | INT_DSR | INT_RI
    board.store(UARTICR, 0x7FF)
    board.store(UARTCR, CR_LBE | CR_OUT1 | CR_OUT2 | CR_RTS)
    assert board.load(UARTRIS) == INT_CTS


# Everything at once


OFFSETS = st.sampled_from(sorted({*range(0, 0x4C, 4), 0xFE0, 0xFFC, 1, 0x1A}))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("load"), OFFSETS),
        st.tuples(st.just("store"), OFFSETS, st.integers(0, 0xFFFF)),
        st.tuples(st.just("store"), st.just(UARTDR), st.integers(0, 255)),
        st.tuples(st.just("receive"), st.binary(max_size=40)),
        st.tuples(st.just("break")),
        st.tuples(st.just("drain"), st.integers(1, 10)),
        st.tuples(st.just("reset")),
    ),
    max_size=60,
)


def act(board: Board, step: tuple[object, ...]) -> object:
    match step:
        case ("load", int(offset)):
            return board.load(offset)
        case ("store", int(offset), int(value)):
            # A guest that heeds TXFF, as the ring demands.
            if offset != UARTDR or not board.load(UARTFR) & FR_TXFF:
                board.store(offset, value)
        case ("receive", bytes(data)):
            return board.uart.receive(data)
        case ("break",):
            return board.uart.receive_break()
        case ("drain", int(most)):
            return board.drain(most)
        case _:
            board.uart.reset()
    return None


@given(STEPS)
def test_no_sequence_of_accesses_loses_reorders_or_raises(steps: list[tuple[object, ...]]) -> None:
    board = Board(full_at=8)
    board.open_port()
    offered, read, seen = bytearray(), bytearray(), bytearray()
    for step in steps:
        if step == ("reset",) or step[:2] == ("store", UARTCR):
            continue  # they empty the FIFO, switch the receiver off, or loop
        result = act(board, step)
        match step, result:
            case ("receive", bytes(data)), int(taken):
                offered += data[:taken]
            case ("load", 0x000), int(word):
                read.append(word & 0xFF)
            case ("drain", _), bytes(data):
                seen += data
        mask = board.load(UARTIMSC)
        assert board.wire.level == bool(board.load(UARTRIS) & mask)
        assert board.load(UARTMIS) == board.load(UARTRIS) & mask
    assert board.sent == seen + board.drain()
    # A break, and a load of the empty FIFO, read as zeroes that nobody offered.
    assert (read + board.read_all()).replace(b"\0", b"") == offered.replace(b"\0", b"")


@given(STEPS, st.integers(1, 16))
def test_the_fast_path_differs_from_python_in_nothing_a_guest_can_see(
    steps: list[tuple[object, ...]], full_at: int
) -> None:
    slow, fast = Board(full_at=full_at), Board(fast=True, full_at=full_at)
    for step in steps:
        assert act(slow, step) == act(fast, step)
        assert slow.load(UARTFR) == fast.load(UARTFR)
        if not slow.ring.full():  # else the next access of a register lowers the line
            assert slow.wire.level == fast.wire.level
        assert slow.load(UARTRIS) == fast.load(UARTRIS)
        assert slow.wire.level == fast.wire.level
        assert slow.wakeups() == fast.wakeups()
        assert slow.ring == fast.ring


@given(st.integers(0, SIZE - 1), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1))
def test_any_access_anywhere_gives_a_value_that_fits(offset: int, size: int, value: int) -> None:
    board = Board()
    board.uart.write(offset, size, value)
    assert 0 <= board.uart.read(offset, size) < 1 << 8 * size
