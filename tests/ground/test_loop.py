"""The event loop: descriptors, calls, timers, signals, and closing."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmm.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Loop() as loop:
        yield loop


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def rounds(loop: Loop, count: int) -> None:
    """Run *count* rounds of the loop."""
    counter = iter(range(count + 1))
    for _ in range(count):
        loop.call_soon_threadsafe(lambda: None)
    loop.run(until=lambda: next(counter) == count)


# File descriptors


def test_a_reader_is_called_as_long_as_bytes_wait(loop: Loop, pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    seen = bytearray()

    def read_one() -> None:
        seen.extend(os.read(reading, 1))
        if len(seen) == 3:
            loop.stop()

    loop.add_reader(reading, read_one)
    os.write(writing, b"abc")
    loop.run()
    assert seen == b"abc"


def test_a_reader_is_called_at_the_end_of_its_file(loop: Loop) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    loop.add_reader(reading, loop.stop)
    loop.run()
    loop.remove_reader(reading)
    os.close(reading)


def test_a_writer_is_called_when_its_reader_has_gone(loop: Loop) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    loop.add_writer(writing, loop.stop)
    os.close(reading)
    loop.run()
    loop.remove_writer(writing)
    os.close(writing)


def test_reader_and_writer_of_one_descriptor_come_and_go_alone(loop: Loop) -> None:
    calls = []
    ours, theirs = socket.socketpair()
    fd = ours.fileno()
    loop.add_reader(fd, lambda: calls.append("reader"))
    loop.add_writer(fd, lambda: calls.append("writer"))
    rounds(loop, 1)
    loop.remove_writer(fd)
    theirs.send(b"x")
    rounds(loop, 1)
    loop.remove_reader(fd)
    loop.remove_reader(fd)
    rounds(loop, 1)
    assert calls == ["writer", "reader"]
    ours.close()
    theirs.close()


def test_a_callback_may_remove_another_that_is_ready_too(loop: Loop) -> None:
    ends = [os.pipe(), os.pipe()]
    calls = []

    def only_one(mine: int, other: int) -> None:
        calls.append(mine)
        loop.remove_reader(other)
        loop.stop()

    for mine, other in ((ends[0][0], ends[1][0]), (ends[1][0], ends[0][0])):
        loop.add_reader(mine, partial(only_one, mine, other))
    for _, writing in ends:
        os.write(writing, b"x")
    loop.run()
    assert len(calls) == 1
    for fd in (fd for pair in ends for fd in pair):
        loop.remove_reader(fd)
        os.close(fd)


def test_a_reader_may_remove_the_writer_of_its_own_descriptor(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    fd = ours.fileno()

    def read() -> None:
        loop.remove_writer(fd)
        loop.stop()

    loop.add_reader(fd, read)
    loop.add_writer(fd, lambda: pytest.fail("called though removed"))
    theirs.send(b"x")
    loop.run()
    loop.remove_reader(fd)
    ours.close()
    theirs.close()


def test_a_regular_file_is_always_ready(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_bytes(b"input")
    with path.open("rb", buffering=0) as file:
        seen = bytearray()

        def read() -> None:
            if data := os.read(file.fileno(), 2):
                seen.extend(data)
            else:
                loop.remove_reader(file.fileno())
                loop.stop()

        loop.add_reader(file.fileno(), read)
        loop.run()
        assert seen == b"input"
        loop.add_reader(file.fileno(), read)  # and again, after it was removed
        loop.remove_reader(file.fileno())


# Calls and stop


def test_calls_from_other_threads_run_in_order_in_the_loops_thread(loop: Loop) -> None:
    calls: list[tuple[int, int]] = []

    def note(number: int) -> None:
        calls.append((number, threading.get_ident()))

    def work() -> None:
        for number in range(1000):
            loop.call_soon_threadsafe(partial(note, number))
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=work)
    thread.start()
    loop.run()
    thread.join()
    assert calls == [(number, threading.get_ident()) for number in range(1000)]


def test_a_call_made_before_run_is_not_lost(loop: Loop) -> None:
    loop.call_soon_threadsafe(loop.stop)
    loop.run()


def test_a_stop_made_before_run_counts(loop: Loop) -> None:
    loop.stop()
    loop.run()


def test_with_a_condition_an_earlier_stop_does_not_count(loop: Loop) -> None:
    done: list[int] = []
    loop.stop()
    loop.call_later(0.01, lambda: done.append(1))
    loop.run(until=lambda: bool(done))
    assert done


def test_a_call_may_repeat_itself_without_starving_others(loop: Loop) -> None:
    def again() -> None:
        loop.call_soon_threadsafe(again)

    again()
    loop.call_later(0.01, loop.stop)
    loop.run()


def test_an_idle_loop_does_not_spin(loop: Loop) -> None:
    loop.call_later(0.2, loop.stop)
    before = time.process_time()
    loop.run()
    assert time.process_time() - before < 0.05


def test_an_error_in_a_callback_comes_out_of_run_and_the_rest_is_kept(loop: Loop) -> None:
    def fail() -> None:
        raise ArithmeticError

    done: list[str] = []
    loop.call_later(0, fail)
    loop.call_later(0, lambda: done.append("timer"))
    with pytest.raises(ArithmeticError):
        loop.run()
    loop.call_soon_threadsafe(fail)
    loop.call_soon_threadsafe(lambda: done.append("call"))
    with pytest.raises(ArithmeticError):
        loop.run()
    loop.run(until=lambda: len(done) == 2)


# Timers


def test_timers_fire_in_the_order_of_their_times(loop: Loop) -> None:
    fired: list[int] = []
    for delay in (3, 1, 2):
        loop.call_later(delay / 100, partial(fired.append, delay))
    loop.call_later(0.04, loop.stop)
    start = time.monotonic()
    loop.run()
    assert fired == [1, 2, 3]
    assert time.monotonic() - start >= 0.04


def test_a_cancelled_timer_does_not_fire_and_leaves_nothing(loop: Loop) -> None:
    fired: list[int] = []
    timer = loop.call_later(0.01, lambda: fired.append(1))
    for _ in range(100):
        loop.call_later(1e9, lambda: None).cancel()
    timer.cancel()
    timer.cancel()
    assert not loop._timers
    loop.call_later(0.02, loop.stop)
    loop.run()
    assert not fired


def test_cancelling_keeps_the_others_in_order(loop: Loop) -> None:
    fired: list[int] = []
    timers = [loop.call_later(n / 1000, partial(fired.append, n)) for n in (1, 2, 9, 3, 4, 8, 7, 5)]
    timers[0].cancel()
    time.sleep(0.01)
    loop.run(until=lambda: len(fired) == 7)
    assert fired == [2, 3, 4, 5, 7, 8, 9]


def test_a_timer_may_cancel_one_that_is_due_with_it(loop: Loop) -> None:
    fired: list[str] = []

    def first() -> None:
        fired.append("first")
        second.cancel()

    loop.call_later(0, first)
    second = loop.call_later(0, lambda: fired.append("second"))
    loop.call_later(0.01, loop.stop)
    time.sleep(0.001)
    loop.run()
    assert fired == ["first"]


def test_a_timer_set_by_another_thread_wakes_the_loop(loop: Loop) -> None:
    thread = threading.Timer(0.02, lambda: loop.call_later(0, loop.stop))
    thread.start()
    loop.run()
    thread.join()


def test_an_alarm_decades_ahead_is_no_error(loop: Loop) -> None:
    loop.call_later(4e9, lambda: None)
    loop.call_later(0.01, loop.stop)
    loop.run()


# Signals


@pytest.mark.parametrize(
    "signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH, signal.SIGCONT]
)
def test_a_signal_reaches_its_callback_in_the_loop(loop: Loop, signum: signal.Signals) -> None:
    loop.add_signal(signum, loop.stop)
    thread = threading.Timer(0.02, lambda: os.kill(os.getpid(), signum))
    thread.start()
    loop.run()
    thread.join()


def test_a_signal_that_comes_before_run_is_kept(loop: Loop) -> None:
    loop.add_signal(signal.SIGTERM, loop.stop)
    os.kill(os.getpid(), signal.SIGTERM)
    loop.run()


def test_a_failing_signal_callback_does_not_take_another_signal_with_it(loop: Loop) -> None:
    def fail() -> None:
        raise ArithmeticError

    loop.add_signal(signal.SIGWINCH, fail)
    loop.add_signal(signal.SIGTERM, loop.stop)
    os.kill(os.getpid(), signal.SIGWINCH)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(ArithmeticError):
        loop.run()
    loop.run()


def test_closing_puts_signal_handlers_and_the_wakeup_descriptor_back() -> None:
    former = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Loop() as loop:
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal(signum, loop.stop)
            loop.add_signal(signum, loop.stop)
        loop.remove_signal(signal.SIGTERM)
        loop.remove_signal(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == former
    wakeup_fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup_fd)
    assert wakeup_fd == -1


# What is left


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_no_descriptor_is_left_open() -> None:
    before = open_files()
    for _ in range(10):
        with Loop() as loop:
            loop.add_signal(signal.SIGTERM, loop.stop)
            loop.stop()
            loop.run()
        loop.close()
    assert open_files() == before


def test_after_close_late_calls_from_other_threads_do_nothing() -> None:
    with Loop() as loop:
        timer = loop.call_later(1, lambda: None)
    loop.call_soon_threadsafe(lambda: None)
    loop.call_later(0, lambda: None)
    loop.stop()
    timer.cancel()
    assert not loop._calls
    assert not loop._timers
