"""The main thread's event loop: file descriptors, timers, signals, and calls from other threads.

    epoll --- file descriptors' callbacks          (level-triggered)
      |------ an eventfd, for call_soon_threadsafe, call_later and stop from any thread
      `------ a pipe that Python's signal handlers write to (signal.set_wakeup_fd)

Callbacks run one after another in the thread that is in `Loop.run`. They must not block. `run`
raises what they raise.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from threading import Lock, get_ident
from typing import NamedTuple, Protocol

from vmm.closeable import Closeable
from vmm.fd import EventFd

Callback = Callable[[], object]
"""A function without arguments, whose result is ignored."""

LONGEST_WAIT = 3600.0
"""Seconds: epoll counts milliseconds in an int, and an alarm may be decades ahead."""


class Cancellable(Protocol):
    """A call that is due, and can be cancelled."""

    def cancel(self) -> None:
        """Drop the call. Does nothing after it was made. Thread-safe."""


CallLater = Callable[[float, Callback], Cancellable]
"""The type of `Loop.call_later`, for devices that need a timer."""


class Watch(NamedTuple):
    """The callbacks of one file descriptor."""

    on_readable: Callback | None = None
    on_writable: Callback | None = None
    pollable: bool = True  # epoll refuses files and /dev/null, which are always ready

    @property
    def mask(self) -> int:
        """The events to ask epoll for."""
        readable = select.EPOLLIN if self.on_readable else 0
        return readable | (select.EPOLLOUT if self.on_writable else 0)


IDLE = Watch()


class Timer:
    """A callback and its time (`time.monotonic`, seconds)."""

    __slots__ = ("_loop", "callback", "due", "order")

    def __init__(self, loop: Loop, due: float, order: int, callback: Callback) -> None:
        self._loop = loop
        self.due = due
        self.order = order  # among timers of the same time
        self.callback = callback

    def __lt__(self, other: Timer) -> bool:
        return (self.due, self.order) < (other.due, other.order)

    def cancel(self) -> None:
        """Drop the call. Does nothing after it was made. Thread-safe."""
        self._loop._forget(self)  # noqa: SLF001  (a timer is its loop's inner part)


class Loop(Closeable):
    """One event loop. It owns file descriptors and signal handlers: use it as a context manager.

    `call_soon_threadsafe`, `call_later`, `Timer.cancel` and `stop` are thread-safe. Everything else
    belongs to the thread that runs the loop, which is the main thread if signals are used.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._calls: deque[Callback] = deque()
        self._timers: list[Timer] = []
        self._timers_made = 0
        self._watches: dict[int, Watch] = {}
        self._stopped = False
        self._thread = 0  # that runs the loop, while it is not waiting
        self._closed = False
        self._signals: dict[int, Callback] = {}
        self._former_handlers: dict[int, object] = {}
        self._former_wakeup_fd = -1
        with ExitStack() as undo:
            self._epoll = undo.enter_context(select.epoll())
            self._wake = undo.enter_context(EventFd())
            self._signals_in, self._signals_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            undo.callback(os.close, self._signals_in)
            undo.callback(os.close, self._signals_out)
            self.add_reader(self._wake.fileno(), self._wake.drain)
            self.add_reader(self._signals_in, self._take_signals)
            undo.pop_all()

    def close(self) -> None:
        """Close what the loop owns and restore former signal handlers. Idempotent.

        Drops calls and timers that are due, and those that are added later.
        """
        for signum in list(self._signals):
            self.remove_signal(signum)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._calls.clear()
            self._timers.clear()
            self._watches.clear()
            self._epoll.close()
            self._wake.close()
            os.close(self._signals_in)
            os.close(self._signals_out)

    # Running

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Call callbacks until `stop`, or until *until()* is true after a round.

        An earlier `stop` counts, unless *until* is given: then it was meant for an earlier run.
        """
        if until is not None:
            self._stopped = False
        while not self._stopped and not (until is not None and until()):
            self._round()
        self._stopped = False

    def stop(self) -> None:
        """Make `run` return after the current round, or at once if it is called later."""
        self._stopped = True
        self._wake_up()

    def _round(self) -> None:
        self._thread = 0
        ready = self._poll()
        self._thread = get_ident()
        for fd, watch, events in ready:
            # An earlier callback of this round may have removed it.
            if self._watches.get(fd) is watch:
                self._dispatch(fd, watch, events)
        now = time.monotonic()
        while timer := self._pop_timer(now):
            timer.callback()
        for _ in range(len(self._calls)):  # calls that these add wait for the next round
            self._calls.popleft()()

    def _poll(self) -> list[tuple[int, Watch, int]]:
        always = [
            (fd, watch, watch.mask) for fd, watch in self._watches.items() if not watch.pollable
        ]
        timeout = 0.0 if always else self._patience()
        polled = self._epoll.poll(timeout)
        return always + [
            (fd, watch, events) for fd, events in polled if (watch := self._watches.get(fd))
        ]

    def _patience(self) -> float:
        """Return the seconds until the next timer: how long to wait for descriptors."""
        with self._lock:
            if self._calls or self._stopped:
                return 0.0
            if not self._timers:
                return LONGEST_WAIT
            return min(max(0.0, self._timers[0].due - time.monotonic()), LONGEST_WAIT)

    def _dispatch(self, fd: int, watch: Watch, events: int) -> None:
        # The callback learns of errors and hang-ups by reading or writing.
        broken = events & (select.EPOLLERR | select.EPOLLHUP)
        if watch.on_readable and events & select.EPOLLIN | broken:
            watch.on_readable()
        on_writable = self._watched(fd).on_writable  # on_readable may have changed it
        if on_writable and events & select.EPOLLOUT | broken:
            on_writable()

    # File descriptors

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call *callback* whenever *fd* is readable, at its end, or broken.

        Replaces the former callback. Remove it before closing *fd*.
        """
        self._watch(fd, Watch(callback, self._watched(fd).on_writable))

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Call *callback* whenever *fd* is writable or broken; see `add_reader`."""
        self._watch(fd, Watch(self._watched(fd).on_readable, callback))

    def remove_reader(self, fd: int) -> None:
        """Stop watching *fd* for reading, if it is watched."""
        self._watch(fd, Watch(None, self._watched(fd).on_writable))

    def remove_writer(self, fd: int) -> None:
        """Stop watching *fd* for writing, if it is watched."""
        self._watch(fd, Watch(self._watched(fd).on_readable, None))

    def _watched(self, fd: int) -> Watch:
        return self._watches.get(fd, IDLE)

    def _watch(self, fd: int, new: Watch) -> None:
        old = self._watched(fd)
        if old.mask and not old.pollable:
            new = new._replace(pollable=False)
        elif not old.mask and new.mask:
            try:
                self._epoll.register(fd, new.mask)
            except PermissionError:
                new = new._replace(pollable=False)
        elif old.mask and not new.mask:
            self._epoll.unregister(fd)
        elif old.mask != new.mask:
            self._epoll.modify(fd, new.mask)
        if new.mask:
            self._watches[fd] = new
        else:
            self._watches.pop(fd, None)

    # Calls and timers

    def call_soon_threadsafe(self, callback: Callback) -> None:
        """Call *callback* in the loop's thread, soon. From any thread, or from a callback."""
        with self._lock:
            if not self._closed:
                self._calls.append(callback)
        self._wake_up()

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Call *callback* in the loop's thread in *seconds*, unless cancelled."""
        with self._lock:
            self._timers_made += 1
            timer = Timer(self, time.monotonic() + seconds, self._timers_made, callback)
            if not self._closed:
                heapq.heappush(self._timers, timer)
        self._wake_up()
        return timer

    def _forget(self, timer: Timer) -> None:
        # A guest can set and cancel alarms all day: cancelled ones must not pile up until due.
        with self._lock, suppress(ValueError):
            self._timers.remove(timer)
            heapq.heapify(self._timers)

    def _pop_timer(self, now: float) -> Timer | None:
        with self._lock:
            if self._timers and self._timers[0].due <= now:
                return heapq.heappop(self._timers)
        return None

    def _wake_up(self) -> None:
        if get_ident() == self._thread:  # the loop looks before it waits again
            return
        with self._lock:  # with the lock, `close` cannot give the number to another file meanwhile
            if not self._closed:
                self._wake.signal()

    # Signals

    def add_signal(self, signum: int, callback: Callback) -> None:
        """Call *callback* in the loop after signal *signum*. Main thread only.

        Signals that arrive while the loop is not running are kept for it. Several of the same
        number may count as one, as signals do.
        """
        if not self._signals:
            self._former_wakeup_fd = signal.set_wakeup_fd(
                self._signals_out, warn_on_full_buffer=False
            )
        self._signals[signum] = callback
        # set_wakeup_fd needs a handler in Python; the work is done in the loop.
        former = signal.signal(signum, lambda _signum, _frame: None)
        self._former_handlers.setdefault(signum, former)

    def remove_signal(self, signum: int) -> None:
        """Restore the former handler of *signum*, if the loop has it."""
        if self._signals.pop(signum, None) is None:
            return
        # None: a handler that Python did not install and cannot restore.
        if (former := self._former_handlers.pop(signum)) is not None:
            signal.signal(signum, former)  # type: ignore[arg-type]
        if not self._signals:
            signal.set_wakeup_fd(self._former_wakeup_fd)

    def _take_signals(self) -> None:
        with suppress(BlockingIOError):
            numbers = os.read(self._signals_in, 4096)
            for signum in dict.fromkeys(numbers):
                if callback := self._signals.get(signum):
                    self._calls.append(
                        callback
                    )  # queued, so that one that raises does not lose the others
