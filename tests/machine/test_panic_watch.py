"""A panic is known by the kernel's last words on the console, and by nothing that looks alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmm.machine.panic_watch import KEPT, SILENCE, PanicWatch

REGISTERS = b"[    3.1] CPU: 0 UID: 0 PID: 1 Comm: init\r\n[    3.1] Call trace:\r\n"
PANIC = b"[    3.1] Kernel panic - not syncing: sysrq triggered crash\r\n"
END = b"[    3.2] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\r\n"
REASON = "sysrq triggered crash"


class Timer:
    def __init__(self, do: Callable[[], None]) -> None:
        self.do, self.cancelled = do, False

    def cancel(self) -> None:
        self.cancelled = True


class Console:
    """A guest's output, and a clock that a test lets run out."""

    def __init__(self) -> None:
        self.waiting = b""
        self.timers: list[Timer] = []
        self.panics: list[str] = []
        self.held = False
        self.watch = PanicWatch(self, self.call_later, self.panics.append, lambda: self.held)
        self.passed_on = b""

    def fileno(self) -> int:
        return 7

    def drain(self, limit: int, /) -> bytes:
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return taken

    def call_later(self, seconds: float, do: Callable[[], None]) -> Timer:
        assert seconds == SILENCE
        self.timers.append(Timer(do))
        return self.timers[-1]

    def says(self, data: bytes, *, chunk: int = 1 << 16) -> None:
        self.waiting += data
        while taken := self.watch.drain(chunk):
            self.passed_on += taken

    def is_silent(self) -> None:
        due, self.timers = self.timers, []
        for timer in due:
            if not timer.cancelled:
                timer.do()


@pytest.fixture
def console() -> Console:
    return Console()


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 16])
def test_last_words_and_then_silence_are_a_panic(console: Console, chunk: int) -> None:
    said = b"booting\r\n" + PANIC + REGISTERS + END
    console.says(said, chunk=chunk)
    assert console.panics == []
    console.is_silent()
    assert console.panics == [REASON]
    assert console.passed_on == said


def test_a_guest_that_is_paused_is_not_silent(console: Console) -> None:
    console.says(PANIC + REGISTERS + END)
    console.held = True
    console.is_silent()
    console.is_silent()
    assert console.panics == []
    console.held = False
    console.is_silent()
    assert console.panics == [REASON]


def test_a_log_that_somebody_reads_is_no_panic(console: Console) -> None:
    console.says(PANIC + REGISTERS + END)
    console.says(b"guest:~# ")
    console.is_silent()
    assert console.panics == []


def test_words_without_an_end_are_no_panic_yet(console: Console) -> None:
    """With panic=10 the kernel prints no end, and resets."""
    console.says(PANIC + REGISTERS)
    console.is_silent()
    assert console.panics == []
    assert console.watch.reason() == REASON


def test_a_reset_after_a_panic_is_the_panics(console: Console) -> None:
    console.says(b"booting\r\n")
    console.waiting = PANIC + REGISTERS  # nobody has drained it when the guest has reset
    assert console.watch.reason() == REASON
    assert console.watch.drain(10) + console.watch.drain(1 << 16) == PANIC + REGISTERS


def test_a_reboot_that_was_asked_for_is_none(console: Console) -> None:
    console.says(PANIC + END + b"guest:~# reboot\r\n[    9.9] reboot: Restarting system\r\n")
    assert console.watch.reason() is None


def test_a_former_power_cycles_panic_does_not_count(console: Console) -> None:
    console.says(PANIC + END)
    console.watch.restart()
    console.is_silent()
    assert console.watch.reason() is None
    assert console.panics == []


def test_much_output_costs_bounded_memory_and_loses_no_panic(console: Console) -> None:
    console.says(b"x" * (KEPT * 20) + PANIC + REGISTERS + END)
    console.is_silent()
    assert console.panics == [REASON]
    assert len(console.watch._recent) <= KEPT
