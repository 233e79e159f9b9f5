"""The console on pipes, files and pseudo-terminals, with a guest that is a few lines of Python."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import threading
import time
from typing import TYPE_CHECKING

import pytest

from vmm.loop import Loop
from vmm.terminal.console import TYPE_AHEAD, StdioConsole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 20.0
"""Seconds until a test gives up."""

MEGABYTE = b"".join(number.to_bytes(4, "big") for number in range(1 << 18))


class Guest:
    """Both ends of a serial port. Its ring holds *ring* bytes, its FIFO *room*."""

    def __init__(self, *, ring: int = 1 << 16, room: int = 1 << 30) -> None:
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._space = threading.Condition(self._lock)
        self._output = bytearray()
        self._size = ring
        self.room = room
        self.drains = 0
        self.heard: list[bytes] = []  # b"BREAK" for a break

    def close(self) -> None:
        os.close(self._eventfd)

    def send(self, data: bytes) -> None:
        """Send as a guest does, which waits while the ring is full."""
        view = memoryview(data)
        while view:
            with self._space:
                while len(self._output) >= self._size:
                    assert self._space.wait(PATIENCE), "the console doesn't drain"
                part = view[: self._size - len(self._output)]
                if not self._output:
                    os.eventfd_write(self._eventfd, 1)
                self._output += part
                view = view[len(part) :]

    def fileno(self) -> int:
        return self._eventfd

    def drain(self, limit: int, /) -> bytes:
        self.drains += 1
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        with self._space:
            taken = bytes(self._output[:limit])
            del self._output[:limit]
            self._space.notify_all()
        return taken

    def receive(self, data: bytes, /) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        if taken:
            self.heard.append(taken)
        return len(taken)

    def receive_break(self) -> bool:
        if self.room:
            self.room -= 1
            self.heard.append(b"BREAK")
            return True
        return False

    def text(self) -> bytes:
        return b"".join(self.heard)


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Loop() as loop:
        yield loop


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


@pytest.fixture
def pty() -> Iterator[tuple[int, int]]:
    ends = os.openpty()
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):
            os.close(fd)


@pytest.fixture
def pipes() -> Iterator[tuple[int, int, int, int]]:
    """Return (console's stdin, user's keyboard, user's screen, console's stdout)."""
    ends = (*os.pipe(), *os.pipe())
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):
            os.close(fd)


def run_until(loop: Loop, condition: Callable[[], object]) -> None:
    def give_up() -> None:
        raise TimeoutError

    timer = loop.call_later(PATIENCE, give_up)
    loop.run(until=lambda: bool(condition()))
    timer.cancel()


def settle(loop: Loop) -> None:
    """Let the loop do whatever it can do now."""
    for _ in range(3):
        loop.call_soon_threadsafe(loop.stop)
        loop.run()


def expect(loop: Loop, master: int, text: bytes) -> bytes:
    """Run *loop* until *text* is on the screen: a terminal passes bytes on in its own time."""
    seen = bytearray()
    loop.add_reader(master, lambda: seen.extend(os.read(master, 1000)))
    run_until(loop, lambda: text in seen)
    loop.remove_reader(master)
    return bytes(seen)


class Screen(threading.Thread):
    """Read *fd* until its end, or until there were *enough* bytes."""

    def __init__(self, fd: int, enough: int = 1 << 62, pause: float = 0.0) -> None:
        super().__init__()
        self._fd, self._enough, self._pause = fd, enough, pause
        self.seen = bytearray()
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the terminal's other side was closed
            while len(self.seen) < self._enough and (data := os.read(self._fd, 1 << 16)):
                self.seen += data
                time.sleep(self._pause)


# Input


def test_what_is_typed_reaches_the_guest_and_so_does_control_c(
    loop: Loop, guest: Guest, pty: tuple[int, int]
) -> None:
    master, slave = pty
    with StdioConsole(loop, guest, guest, stdin=slave, stdout=slave):
        os.write(master, b"ls -l\r\x03\x1a\x11\x13\x04")
        run_until(loop, lambda: len(guest.text()) == 11)
    assert guest.text() == b"ls -l\r\x03\x1a\x11\x13\x04"


def test_the_terminal_echoes_nothing_by_itself(
    loop: Loop, guest: Guest, pty: tuple[int, int]
) -> None:
    master, slave = pty
    with StdioConsole(loop, guest, guest, stdin=slave, stdout=slave):
        os.write(master, b"secret\r")
        run_until(loop, lambda: guest.text() == b"secret\r")
        guest.send(b"prompt\n")
        assert expect(loop, master, b"\n") == b"prompt\n"


def test_a_pipe_is_read_no_faster_than_the_guest_reads(
    loop: Loop, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    stdin, keyboard, _, stdout = pipes
    script = bytes(range(256)) * 40
    guest.room = 32
    with StdioConsole(loop, guest, guest, stdin=stdin, stdout=stdout) as console:
        os.write(keyboard, script)
        while len(guest.text()) < len(script):
            settle(loop)
            assert guest.room == 0 or guest.text() == script
            guest.room = 32
            console.input_ready()
    assert guest.text() == script


def test_input_that_waits_costs_no_cpu_time(
    loop: Loop, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    stdin, keyboard, _, stdout = pipes
    guest.room = 0
    os.write(keyboard, b"script")
    with StdioConsole(loop, guest, guest, stdin=stdin, stdout=stdout):
        settle(loop)
        loop.call_later(0.2, loop.stop)
        before = time.process_time()
        loop.run()
        assert time.process_time() - before < 0.05


def test_room_announced_by_another_thread_moves_the_input(
    loop: Loop, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    stdin, keyboard, _, stdout = pipes
    guest.room = 1
    os.write(keyboard, b"ab")
    with StdioConsole(loop, guest, guest, stdin=stdin, stdout=stdout) as console:

        def read() -> None:
            while not guest.heard:
                time.sleep(0.001)
            guest.room = 1
            console.input_ready()

        thread = threading.Thread(target=read)
        thread.start()
        run_until(loop, lambda: guest.text() == b"ab")
        thread.join()


def test_escape_bytes_in_a_pipe_are_bytes(
    loop: Loop, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    stdin, keyboard, _, stdout = pipes
    with StdioConsole(loop, guest, guest, stdin=stdin, stdout=stdout):
        os.write(keyboard, b"\x01x")
        run_until(loop, lambda: guest.text() == b"\x01x")


def test_the_guest_outlives_the_end_of_its_input(
    loop: Loop, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    stdin, keyboard, screen, stdout = pipes
    with StdioConsole(loop, guest, guest, stdin=stdin, stdout=stdout):
        os.write(keyboard, b"last")
        os.close(keyboard)
        run_until(loop, lambda: guest.text() == b"last")
        guest.send(b"still here")
        settle(loop)
        assert os.read(screen, 100) == b"still here"
        loop.call_later(0.1, loop.stop)
        before = time.process_time()
        loop.run()
        assert time.process_time() - before < 0.05


def test_a_file_is_input_too(
    loop: Loop, guest: Guest, tmp_path: Path, pipes: tuple[int, int, int, int]
) -> None:
    path = tmp_path / "script"
    path.write_bytes(b"x" * 10_000)
    with (
        path.open("rb", buffering=0) as file,
        StdioConsole(loop, guest, guest, stdin=file.fileno(), stdout=pipes[3]),
    ):
        run_until(loop, lambda: len(guest.text()) == 10_000)


@pytest.mark.parametrize("name", ["/dev/null"])
def test_an_empty_device_is_an_end_at_once(loop: Loop, guest: Guest, name: str) -> None:
    fd = os.open(name, os.O_RDWR)
    with StdioConsole(loop, guest, guest, stdin=fd, stdout=fd):
        guest.send(b"into the void")
        settle(loop)
        assert guest.drain(100) == b""
    os.close(fd)


def test_without_stdin_and_stdout_the_guest_runs_alone(loop: Loop, guest: Guest) -> None:
    with StdioConsole(loop, guest, guest, stdin=None, stdout=None) as console:
        guest.send(b"nobody listens")
        console.flush()
        assert guest.drain(100) == b""


def test_a_terminal_that_hangs_up_ends_the_input_only(
    loop: Loop, guest: Guest, pty: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    master, slave = pty
    with StdioConsole(loop, guest, guest, stdin=slave, stdout=slave) as console:
        os.close(master)
        settle(loop)
        guest.send(b"anybody?")
        console.flush()
        before = time.process_time()
        loop.call_later(0.1, loop.stop)
        loop.run()
        assert time.process_time() - before < 0.05
    assert "the guest goes on" in capsys.readouterr().err


# Escape keys


def test_escape_keys_act_and_the_guest_does_not_see_them(
    loop: Loop, guest: Guest, pty: tuple[int, int]
) -> None:
    master, slave = pty
    done: list[str] = []
    with StdioConsole(loop, guest, guest, stdin=slave, stdout=slave) as console:
        console.on_quit = lambda: done.append("quit")
        console.on_reset = lambda: done.append("reset")
        console.on_balloon = lambda direction: done.append(f"balloon {direction:+}")
        console.on_map = lambda: done.append("map")
        console.on_counters = lambda: done.append("counters")
        console.on_snapshot = lambda: done.append("snapshot")
        os.write(master, b"a\x01rb\x01bc\x01-\x01+\x01m\x01e\x01w\x01st\x01\x01d\x01x")
        run_until(loop, lambda: len(done) == 7)
    wanted = ["reset", "balloon +1", "balloon -1", "map", "counters", "snapshot", "quit"]
    assert done == wanted
    assert guest.heard == [b"a", b"b", b"BREAK", b"c", b"BREAK", b"t\x01d"]


def test_what_is_typed_after_a_switch_goes_to_the_other_console(
    loop: Loop, guest: Guest, pty: tuple[int, int]
) -> None:
    master, slave = pty
    other = Guest()
    with StdioConsole(loop, guest, guest, stdin=slave, stdout=slave) as console:
        console.on_switch = lambda: console.type_into(other)
        os.write(master, b"a\x01cb")
        run_until(loop, lambda: bool(other.heard))
    other.close()
    assert (guest.heard, other.heard) == ([b"a"], [b"b"])


def test_help_is_shown_with_line_ends_for_a_raw_terminal(
    loop: Loop, guest: Guest, pty: tuple[int, int]
) -> None:
    master, slave = pty
    with StdioConsole(loop, guest, guest, stdin=slave, stdout=slave, escape=0x02):
        os.write(master, b"\x02h")
        shown = expect(loop, master, b"itself\r\n")
    assert b"pyvmm: C-b x      quit" in shown
    assert shown.replace(b"\r\n", b"").find(b"\n") < 0
    assert shown.startswith(b"\r\n")
    assert shown.endswith(b"\r\n")


def test_escape_keys_work_while_the_guest_reads_nothing(
    loop: Loop, guest: Guest, pty: tuple[int, int]
) -> None:
    master, slave = pty
    guest.room = 0
    with StdioConsole(loop, guest, guest, stdin=slave, stdout=slave) as console:
        console.on_quit = loop.stop
        for _ in range(4):
            os.write(master, b"x" * 1000)
            settle(loop)
        os.write(master, b"\x01x")
        loop.run()
    assert guest.text() == b""


def test_a_hanging_guest_does_not_make_the_console_grow_without_end(
    loop: Loop, guest: Guest, pty: tuple[int, int]
) -> None:
    master, slave = pty
    guest.room = 0
    os.set_blocking(master, False)
    with StdioConsole(loop, guest, guest, stdin=slave, stdout=slave) as console:
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 10 * TYPE_AHEAD:
                sent += os.write(master, b"x" * 1000)
                settle(loop)
        assert sent < 3 * TYPE_AHEAD
        guest.room = 1 << 30
        console.input_ready()
        run_until(loop, lambda: len(guest.text()) == sent)


def test_without_an_escape_key_all_keys_are_the_guests(
    loop: Loop, guest: Guest, pty: tuple[int, int]
) -> None:
    master, slave = pty
    with StdioConsole(loop, guest, guest, stdin=slave, stdout=slave, escape=None):
        os.write(master, b"\x01x")
        run_until(loop, lambda: guest.text() == b"\x01x")


# Output


@pytest.mark.parametrize("pause", [0.0, 0.001], ids=["fast", "slow"])
def test_a_megabyte_through_a_terminal_arrives_whole(
    loop: Loop, guest: Guest, pty: tuple[int, int], pause: float
) -> None:
    master, slave = pty
    text = MEGABYTE
    screen = Screen(master, len(text), pause)
    sender = threading.Thread(target=guest.send, args=(text,))
    with StdioConsole(loop, guest, guest, stdin=slave, stdout=slave) as console:
        sender.start()
        run_until(loop, lambda: not sender.is_alive() or loop.call_later(0.001, int) is None)
        console.flush()
    sender.join()
    screen.join()
    assert screen.seen == text


def test_a_megabyte_through_a_pipe_that_is_read_late_arrives_whole(
    loop: Loop, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    stdin, _, reading, stdout = pipes
    text = MEGABYTE
    sender = threading.Thread(target=guest.send, args=(text,))
    with StdioConsole(loop, guest, guest, stdin=stdin, stdout=stdout) as console:
        sender.start()
        loop.call_later(0.2, loop.stop)
        before = time.process_time()
        loop.run()
        assert time.process_time() - before < 0.1, "waiting for a reader costs CPU time"
        assert sender.is_alive(), "nobody holds the guest back"
        screen = Screen(reading)
        run_until(loop, lambda: not sender.is_alive() or loop.call_later(0.001, int) is None)
        console.flush()
    os.close(stdout)
    sender.join()
    screen.join()
    assert screen.seen == text


def test_a_ring_larger_than_one_turn_is_written_to_its_end(
    loop: Loop, tmp_path: Path, pipes: tuple[int, int, int, int]
) -> None:
    guest = Guest(ring=1 << 23)
    guest.send(MEGABYTE * 3)
    path = tmp_path / "log"
    with (
        path.open("wb", buffering=0) as log,
        StdioConsole(loop, guest, guest, stdin=pipes[0], stdout=log.fileno()),
    ):
        run_until(loop, lambda: path.stat().st_size == len(MEGABYTE) * 3)
    assert path.read_bytes() == MEGABYTE * 3
    guest.close()


def test_a_guest_that_sends_byte_by_byte_does_not_wake_us_for_each(
    loop: Loop, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    stdin, _, reading, stdout = pipes

    def talk() -> None:
        for byte in MEGABYTE[:2000]:
            guest.send(bytes([byte]))
            time.sleep(1e-5)
        loop.call_soon_threadsafe(loop.stop)

    sender = threading.Thread(target=talk)
    with StdioConsole(loop, guest, guest, stdin=stdin, stdout=stdout) as console:
        sender.start()
        loop.run()
        console.flush()
        assert os.read(reading, 1 << 16) == MEGABYTE[:2000]
        assert guest.drains < 1000
    sender.join()


def test_input_is_served_while_the_guest_never_stops_sending(
    loop: Loop, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    stdin, keyboard, _, _ = pipes
    stop = threading.Event()
    null = os.open("/dev/null", os.O_WRONLY)

    def babble() -> None:
        while not stop.is_set():
            guest.send(bytes(1 << 16))

    sender = threading.Thread(target=babble)
    with StdioConsole(loop, guest, guest, stdin=stdin, stdout=null):
        sender.start()
        os.write(keyboard, b"stop")
        run_until(loop, lambda: guest.text() == b"stop")
        stop.set()
        run_until(loop, lambda: not sender.is_alive() or loop.call_later(0.001, int) is None)
    sender.join()
    os.close(null)


def test_a_reader_that_goes_away_is_told_of_once_and_the_guest_goes_on(
    loop: Loop,
    guest: Guest,
    pipes: tuple[int, int, int, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stdin, keyboard, reading, stdout = pipes
    with StdioConsole(loop, guest, guest, stdin=stdin, stdout=stdout) as console:
        os.close(reading)
        for _ in range(3):
            guest.send(bytes(1 << 16))
            console.flush()
        os.write(keyboard, b"hello?")
        run_until(loop, lambda: guest.text() == b"hello?")
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "Broken pipe; the guest goes on" in warning


def test_what_the_guest_sent_before_the_console_opened_is_shown(
    loop: Loop, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    stdin, _, reading, stdout = pipes
    guest.send(b"early")
    with StdioConsole(loop, guest, guest, stdin=stdin, stdout=stdout):
        pass
    assert os.read(reading, 100) == b"early"


def test_flush_is_cut_short_by_stop(
    loop: Loop, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    stdin, _, _, stdout = pipes
    with StdioConsole(loop, guest, guest, stdin=stdin, stdout=stdout) as console:
        for _ in range(2):  # one for the pipe, one to wait
            guest.send(bytes(1 << 16))
            settle(loop)
        loop.call_later(0.05, loop.stop)
        start = time.monotonic()
        console.flush()
        assert time.monotonic() - start > 0.04


# What is left


def modes(fd: int) -> list[object]:
    return termios.tcgetattr(fd)


def test_the_terminal_is_raw_inside_and_as_before_outside(
    loop: Loop, guest: Guest, pty: tuple[int, int]
) -> None:
    _, slave = pty
    before = modes(slave)
    with StdioConsole(loop, guest, guest, stdin=slave, stdout=slave):
        iflag, oflag, _, lflag, *_ = termios.tcgetattr(slave)
        assert not lflag & (termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
        assert not oflag & termios.OPOST
        assert not iflag & (termios.ICRNL | termios.IXON)
    assert modes(slave) == before


def test_an_error_gives_the_terminal_back(loop: Loop, guest: Guest, pty: tuple[int, int]) -> None:
    _, slave = pty
    before = modes(slave)

    def fail() -> None:
        raise ArithmeticError

    def session() -> None:
        with StdioConsole(loop, guest, guest, stdin=slave, stdout=slave):
            loop.call_soon_threadsafe(fail)
            loop.run()

    with pytest.raises(ArithmeticError):
        session()
    assert modes(slave) == before


def test_without_a_terminal_on_stdin_the_one_on_stdout_keeps_its_modes(
    loop: Loop, guest: Guest, pty: tuple[int, int], pipes: tuple[int, int, int, int]
) -> None:
    _, slave = pty
    before = modes(slave)
    with StdioConsole(loop, guest, guest, stdin=pipes[0], stdout=slave):
        assert modes(slave) == before


def test_no_descriptor_handler_or_watch_is_left(loop: Loop, guest: Guest) -> None:
    def state() -> tuple[object, object]:
        handlers = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
        return set(os.listdir("/proc/self/fd")), handlers  # noqa: PTH208

    master, slave = os.openpty()
    before = state()
    for _ in range(5):
        with StdioConsole(loop, guest, guest, stdin=slave, stdout=slave) as console:
            guest.send(b"x")
            settle(loop)
        console.close()
    assert state() == before
    assert len(loop._watches) == 2  # its own
    os.close(master)
    os.close(slave)


def test_say_goes_to_stderr_when_there_is_no_terminal(
    loop: Loop,
    guest: Guest,
    pipes: tuple[int, int, int, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with StdioConsole(loop, guest, guest, stdin=pipes[0], stdout=pipes[3]) as console:
        console.say("one", "two")
    assert capsys.readouterr().err == "pyvmm: one\npyvmm: two\n"


def test_say_survives_a_missing_stderr(
    loop: Loop, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with StdioConsole(loop, guest, guest, stdin=None, stdout=None) as console:
        console.say("nobody hears")


# --- lines of pyvmm's amid the guest's -----------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "after"), [(b"guest:~# ", b"\r\n"), (b"power down\r\n", b""), (b"", b"")]
)
def test_the_shells_prompt_does_not_follow_the_guests(
    loop: Loop, guest: Guest, pty: tuple[int, int], sent: bytes, after: bytes
) -> None:
    master, slave = pty
    with StdioConsole(loop, guest, guest, stdin=slave, stdout=slave) as console:
        if sent:
            guest.send(sent)
            expect(loop, master, sent.strip(b"\r\n"))
        console.end_line()
    os.set_blocking(master, False)
    left = b""
    with contextlib.suppress(BlockingIOError):
        left = os.read(master, 4096)
    assert left.lstrip(b"\r\n" if sent.endswith(b"\n") else b"") == after


def test_a_pipe_gets_no_byte_that_the_guest_has_not_sent(
    loop: Loop, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    with StdioConsole(loop, guest, guest, stdin=pipes[0], stdout=pipes[3]) as console:
        guest.send(b"guest:~# ")
        settle(loop)
        console.end_line()
    assert os.read(pipes[2], 4096) == b"guest:~# "


def test_whoever_waits_is_told_before_the_guests_output_is_written(
    loop: Loop, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    told: list[str] = []
    with StdioConsole(loop, guest, guest, stdin=pipes[0], stdout=pipes[3]) as console:
        console.on_output = lambda: told.append("output")
        settle(loop)
        assert told == []
        guest.send(b"hello")
        settle(loop)
        assert told == ["output"]
        console.say("a line")
        assert told == ["output", "output"]


def test_a_new_size_of_the_window_is_told_for_as_long_as_the_console_is_open(
    loop: Loop, guest: Guest, pipes: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter([(132, 43), (0, 0)])  # the second is none: a serial line's
    monkeypatch.setattr(os, "get_terminal_size", lambda _fd: os.terminal_size(next(sizes)))
    former = signal.getsignal(signal.SIGWINCH)
    told: list[tuple[int, int]] = []
    console = StdioConsole(loop, guest, guest, stdin=pipes[0], stdout=pipes[3])
    console.on_resize = lambda *size: told.append(size)
    with console:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGWINCH)
            loop.call_later(0.01, loop.stop)
            loop.run()
    assert told == [(132, 43)]
    assert signal.getsignal(signal.SIGWINCH) is former
