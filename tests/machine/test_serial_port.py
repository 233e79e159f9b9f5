"""The whole serial port without a guest: stores answered in C, the UART, the loop, the console."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from vmm._native import ffi, lib
from vmm.devices.pl011 import (
    FIFO_DEPTH,
    FR_RXFE,
    FR_TXFE,
    FR_TXFF,
    INT_RT,
    INT_RX,
    INT_TX,
    UARTCR,
    UARTDR,
    UARTFR,
    UARTIMSC,
    UARTLCR_H,
    UARTRIS,
    Pl011,
)
from vmm.irq import SwitchableLine
from vmm.kvm.mmio_fastpath import DeviceFastpath, MmioFastpath, Sink
from vmm.loop import Loop
from vmm.terminal.console import StdioConsole

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = 0x900_0000
PATIENCE = 60.0


class Line:
    """An interrupt line that a thread can wait for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._level = False

    def set_level(self, level: bool) -> None:  # noqa: FBT001  (the protocol's signature)
        with self._changed:
            self._level = level
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._level, PATIENCE), "a lost interrupt"


class Port:
    """The UART as the machine wires it: answered in C where possible, else in Python."""

    def __init__(self, size: int) -> None:
        self.line = Line()
        wire = SwitchableLine()
        wire.connect(self.line)
        self.sink = Sink(size, headroom=FIFO_DEPTH)
        self.uart = Pl011(wire, self.sink)
        self.sink.on_space = self.uart.transmit_space
        self._answers = MmioFastpath()
        self.uart.use(DeviceFastpath(self._answers, BASE, self.sink))

    def cpu(self) -> Cpu:
        return Cpu(self.uart, self._answers)


class Cpu:
    """Handle an exit as a vCPU's thread does."""

    def __init__(self, uart: Pl011, answers: MmioFastpath) -> None:
        self._uart = uart
        self._run = ffi.new("struct kvm_run *")
        self._mmio: Any = self._run.mmio
        self._vcpu = ffi.new("struct pyvmm_vcpu *", {"fd": -1, "run": self._run})
        self._keep = answers
        lib.pyvmm_set_answers(self._vcpu, answers.c)
        self.in_python = 0

    def load(self, offset: int) -> int:
        self._mmio.phys_addr, self._mmio.len, self._mmio.is_write = BASE + offset, 4, 0
        if lib.pyvmm_answer(self._vcpu):
            return int.from_bytes(ffi.buffer(self._mmio.data)[:4], "little")
        self.in_python += 1
        return self._uart.read(offset, 4)

    def store(self, offset: int, value: int) -> None:
        self._mmio.phys_addr, self._mmio.len, self._mmio.is_write = BASE + offset, 4, 1
        self._mmio.data[0] = value & 0xFF
        if not lib.pyvmm_answer(self._vcpu):
            self.in_python += 1
            self._uart.write(offset, 4, value)


@pytest.fixture
def port(request: pytest.FixtureRequest) -> Iterator[Port]:
    port = Port(getattr(request, "param", 1 << 12))
    yield port
    port.sink.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Loop() as loop:
        yield loop


def run_beside(loop: Loop, *threads: threading.Thread) -> None:
    """Run *loop* until all *threads* have ended."""

    def watch() -> None:
        for thread in threads:
            thread.join()
        loop.call_soon_threadsafe(loop.stop)

    for thread in threads:
        thread.start()
    watcher = threading.Thread(target=watch)
    watcher.start()
    loop.run()
    watcher.join()


class Reader(threading.Thread):
    """Read a pipe or a terminal to its end."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self.seen = bytearray()
        self.start()

    def run(self) -> None:
        with suppress(OSError):  # EIO: a terminal without its other side
            while data := os.read(self._fd, 1 << 16):
                self.seen += data


class Driver:
    """A guest's driver: sends *text* and receives *expected* bytes by interrupts, as Linux does."""

    def __init__(self, port: Port, text: bytes, expected: int) -> None:
        self.heard = bytearray()
        self._line, self._cpu = port.line, port.cpu()
        self._left, self._expected = memoryview(text), expected
        self._mask = INT_RX | INT_RT | INT_TX

    def run(self) -> None:
        cpu = self._cpu
        cpu.store(UARTLCR_H, 0x70)
        cpu.store(UARTCR, 0x301)
        while self._left and not cpu.load(UARTFR) & FR_TXFF:
            self._send(1)
        cpu.store(UARTIMSC, self._mask)
        while self._left or len(self.heard) < self._expected:
            self._line.wait()
            while status := cpu.load(UARTRIS) & self._mask:
                self._serve(status)

    def _serve(self, status: int) -> None:
        if status & (INT_RX | INT_RT):
            while not self._cpu.load(UARTFR) & FR_RXFE:
                self.heard.append(self._cpu.load(UARTDR))
        if status & INT_TX:
            self._send(FIFO_DEPTH // 2)  # without a look at TXFF
            if not self._left:
                self._mask &= ~INT_TX
                self._cpu.store(UARTIMSC, self._mask)

    def _send(self, count: int) -> None:
        part, self._left = self._left[:count], self._left[count:]
        for byte in part:
            self._cpu.store(UARTDR, byte)


def test_c_answers_flags_and_stores_from_the_first_access_on(port: Port) -> None:
    cpu = port.cpu()
    assert cpu.load(UARTFR) & (FR_RXFE | FR_TXFE | FR_TXFF) == FR_RXFE | FR_TXFE
    for byte in b"Booting Linux\r\n":
        cpu.store(UARTDR, byte)
    assert cpu.in_python == 0
    assert port.sink.drain() == b"Booting Linux\r\n"


def test_c_and_python_agree_on_a_full_ring(port: Port) -> None:
    cpu = port.cpu()
    while not cpu.load(UARTFR) & FR_TXFF:
        cpu.store(UARTDR, 0)
    assert cpu.load(UARTFR) == port.uart.read(UARTFR, 4)
    port.sink.drain()
    assert cpu.load(UARTFR) == port.uart.read(UARTFR, 4)
    assert not cpu.load(UARTFR) & FR_TXFF


@pytest.mark.parametrize("port", [512, 1 << 16], indirect=True)
def test_two_cpus_that_poll_lose_no_byte_on_a_terminal(port: Port, loop: Loop) -> None:
    master, slave = os.openpty()
    reader = Reader(master)

    def talk(start: int) -> None:
        cpu = port.cpu()
        for number in range(10_000):
            while cpu.load(UARTFR) & FR_TXFF:
                pass
            cpu.store(UARTDR, start + number % 100)

    stdin = os.open("/dev/null", os.O_RDONLY)
    with StdioConsole(loop, port.sink, port.uart, stdin=slave, stdout=slave) as console:
        run_beside(loop, *(threading.Thread(target=talk, args=(start,)) for start in (0, 100)))
        console.flush()
    os.close(slave)
    os.close(stdin)
    reader.join()
    os.close(master)
    for start in (0, 100):
        own = bytes(byte for byte in reader.seen if start <= byte < start + 100)
        assert own == bytes(start + number % 100 for number in range(10_000))


@pytest.mark.parametrize("port", [512, 1 << 12], indirect=True)
def test_interrupt_driven_output_and_input_lose_nothing(port: Port, loop: Loop) -> None:
    text = bytes(number * 7 % 251 for number in range(40_000))
    script = bytes(number * 5 % 241 for number in range(20_000))
    driver = Driver(port, text, len(script))
    stdin, keyboard = os.pipe()
    reading, stdout = os.pipe()
    reader = Reader(reading)
    typist = threading.Thread(target=os.write, args=(keyboard, script))
    with StdioConsole(loop, port.sink, port.uart, stdin=stdin, stdout=stdout) as console:
        port.uart.on_space = console.input_ready
        run_beside(loop, threading.Thread(target=driver.run), typist)
        console.flush()
    os.close(stdout)
    reader.join()
    for fd in (stdin, keyboard, reading):
        os.close(fd)
    assert reader.seen == text
    assert driver.heard == script
