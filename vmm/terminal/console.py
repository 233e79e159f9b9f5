"""Join the guest's console to standard input and output of this process.

    guest --> OutputSource --> pending --> stdout        (each waits for the one to its right;
    guest <-- InputSink    <-- queue   <-- stdin          nobody polls, nothing is lost)

A terminal on stdin is in raw mode while the console has it: ^C is the guest's, and pyvmm's own
keys start with a prefix (vmm/terminal/escape.py). Without a terminal, bytes pass as they are.

When stdin ends, the guest continues. When stdout breaks (its reader has gone, the disk is full),
the guest continues, too, and its further output is dropped after one warning: a machine must not
die of its console.
"""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, Self

from vmm.closeable import Closeable
from vmm.terminal.escape import CTRL_A, EscapeCommand, EscapeKeys, help_lines
from vmm.terminal.nonblocking import NonblockingWriter
from vmm.terminal.raw_mode import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.loop import Cancellable, Loop

INPUT_CHUNK = 4096
OUTPUT_CHUNK = 1 << 16
PATIENCE = 16
"""Chunks written before others get a turn, because a guest may send without end."""
LINGER = 0.004
"""Seconds between writes while the guest is sending.

Guests send byte by byte. Waking up for each costs a machine with few processors, such as an
emulated one, more than the guest's own work.
"""
TYPE_AHEAD = 1 << 16
"""Bytes kept for a guest that does not read, so that escape keys typed after them still work."""


class OutputSource(Protocol):
    """Bytes that the guest has sent."""

    def fileno(self) -> int:
        """Return a descriptor (it may be an eventfd) that is readable while bytes wait.

        After `drain` has returned b"", the next byte must make it readable.
        """

    def drain(self, limit: int, /) -> bytes:
        """Return up to *limit* bytes; b"": none wait. Never blocks."""


class InputSink(Protocol):
    """The guest's end of the line. It calls `StdioConsole.input_ready` when it has room again."""

    def receive(self, data: bytes, /) -> int:
        """Accept what fits; return how many bytes that was."""

    def receive_break(self) -> bool:
        """Accept a break condition; return False if there is no room."""


def standard_input() -> int | None:
    """Return stdin's descriptor, or None if pyvmm was started without one (``<&-``).

    Ask Python, because descriptor 0 may be another file by now.
    """
    return None if sys.stdin is None else sys.stdin.fileno()


def standard_output() -> int | None:
    """Return stdout's descriptor, or None if pyvmm was started without one."""
    return None if sys.stdout is None else sys.stdout.fileno()


def terminal_size() -> tuple[int, int] | None:
    """Return columns and rows of the terminal on standard output.

    None: it is no terminal, or one that has been told no size, as serial lines are.
    """
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return None
    return (size.columns, size.lines) if size.columns else None


class StdioConsole(Closeable):
    """A guest's console, joined to *stdin* and *stdout* (descriptors; None: there is none).

    Use as a context manager, in the thread of *loop*. *escape* is the prefix of pyvmm's own keys,
    None for no such keys; they exist only on a terminal. Set the callbacks for them:

    on_quit     C-a x
    on_reset    C-a r
    on_balloon  C-a -, with 1 (a larger balloon); C-a +, with -1
    on_map      C-a m
    on_counters C-a e
    on_switch   C-a c
    on_snapshot C-a w

    And, for a sink and a source that can end:

    on_input_end     stdin has ended, and the sink has all of it
    on_output_error  stdout takes nothing more; by default the user is told

    And, before the console is opened, for a guest's terminal that has a size:

    on_resize        the terminal on standard output has another size: columns and rows

    With *raw* False a terminal on stdin stays as it is.
    """

    def __init__(  # noqa: PLR0913  (two ends, each with two directions)
        self,
        loop: Loop,
        source: OutputSource,
        sink: InputSink,
        *,
        stdin: int | None,
        stdout: int | None,
        escape: int | None = CTRL_A,
        raw: bool = True,
    ) -> None:
        self.on_quit: Callable[[], None] = lambda: None
        self.on_reset: Callable[[], None] = lambda: None
        self.on_balloon: Callable[[int], None] = lambda _direction: None
        self.on_map: Callable[[], None] = lambda: None
        self.on_counters: Callable[[], None] = lambda: None
        self.on_switch: Callable[[], None] = lambda: None
        self.on_snapshot: Callable[[], None] = lambda: None
        self.on_output: Callable[[], None] = lambda: None
        """Called before anything is written for the user: from the guest, or by `say`."""
        self.on_input_end: Callable[[], object] = lambda: None
        self.on_output_error: Callable[[OSError], object] = self._say_dropped
        self.on_resize: Callable[[int, int], object] | None = None
        self._loop = loop
        self._source = source
        self._sink = sink
        self._stdin = stdin
        self._stdout = stdout
        self._escape = escape
        self._raw = raw
        self._open = False
        self._reading = False
        self._terminal: Terminal | None = None
        self._outlet: NonblockingWriter | None = None
        self._keys = EscapeKeys(None)
        self._queue: deque[bytes | EscapeCommand] = deque()
        self._queued = 0  # bytes
        self._pending = bytearray()
        self._at_start = True  # the cursor, as far as we know
        self._moved = 0  # bytes written, or dropped
        self._blocked = False  # stdout says when to go on
        self._timer: Cancellable | None = None
        self._former_handlers: dict[int, Any] = {}

    @property
    def on_terminal(self) -> bool:
        """Whether a user has pyvmm's own keys."""
        return self._terminal is not None

    def __enter__(self) -> Self:
        self._open = True
        try:
            if self._stdout is not None:
                self._outlet = NonblockingWriter(self._stdout)
            self._loop.add_reader(self._source.fileno(), self._advance)
            if self._stdin is not None and self._raw and os.isatty(self._stdin):
                self._terminal = Terminal(self._stdin)
                self._keys = EscapeKeys(self._escape)
                self._control_jobs()
                self._take_terminal()
            if self.on_resize is not None:
                self._loop.add_signal(signal.SIGWINCH, self._resized)
            self._resume_reading()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Write what can be written at once, and restore the terminal. Idempotent."""
        if not self._open:
            return
        try:
            self._pump()
        finally:
            self._open = False
            if self._terminal is not None:
                self._terminal.restore()
                self._release_jobs()
            if self.on_resize is not None:
                self._loop.remove_signal(signal.SIGWINCH)
            self._wait_for_nothing()
            self._stop_reading()
            if self._outlet is not None:
                self._outlet.close()

    def flush(self) -> None:
        """Run the loop until everything that the guest has sent is written, or stdout breaks.

        That takes as long as the reader takes (``pyvmm run ... | less``). `Loop.stop`, from a
        signal's callback or ``on_quit``, ends it early.
        """
        self._loop.run(until=self._pump)

    def say(self, *lines: str) -> None:
        """Show *lines* to the user: on the terminal, amid the guest's output, or on stderr."""
        self.on_output()
        text = "".join(f"pyvmm: {line}\n" for line in lines)
        if self._terminal and self._terminal.raw:
            text = "\r\n" + text.replace("\n", "\r\n")
            if self._outlet is not None and os.isatty(self._outlet.fileno()):
                self._pending += text.encode()
                self._pump()
                return
        if sys.stderr is not None:
            with suppress(OSError):
                sys.stderr.write(text)
                sys.stderr.flush()

    def end_line(self) -> None:
        """On a terminal, start a new line unless the cursor is at the start of one."""
        if not (self._terminal and self._terminal.raw) or self._at_start or self._pending:
            return
        if self._outlet is not None and os.isatty(self._outlet.fileno()):
            self._pending += b"\r\n"
            self._write()

    # Output: it waits for the source, for a moment (LINGER), or for stdout

    def _wait_for_nothing(self) -> None:
        self._loop.remove_reader(self._source.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._outlet is not None and self._blocked:
            self._loop.remove_writer(self._outlet.fileno())
        self._blocked = False

    def _advance(self) -> None:
        """Write what there is, and decide what to wait for."""
        self._wait_for_nothing()
        moved = self._moved
        self._pump()
        if self._blocked:
            return
        if self._moved == moved:
            self._loop.add_reader(self._source.fileno(), self._advance)
        else:
            self._timer = self._loop.call_later(LINGER, self._advance)

    def _pump(self) -> bool:
        """Write until nothing waits (True), or until stdout or PATIENCE is exhausted (False)."""
        for _ in range(PATIENCE):
            if not self._pending:
                self._pending += self._source.drain(OUTPUT_CHUNK)
                if not self._pending:
                    return True
                self.on_output()
            self._write()
            if self._pending:
                return False
        if not self._blocked and self._open:
            self._loop.call_soon_threadsafe(self._go_on)
        return False

    def _go_on(self) -> None:
        if self._open and not self._blocked:
            self._advance()

    def _write(self) -> None:
        written = len(self._pending)
        if self._outlet is not None:
            try:
                written = self._outlet.write(self._pending)
            except OSError as error:
                self._drop_output(error)
        self._moved += written
        if written:
            self._at_start = self._pending[written - 1] in b"\r\n"
        del self._pending[:written]
        if self._pending and self._outlet is not None and not self._blocked:
            # The source waits with us: its ring may fill up.
            self._wait_for_nothing()
            self._blocked = True
            self._loop.add_writer(self._outlet.fileno(), self._advance)

    def _drop_output(self, error: OSError) -> None:
        assert self._outlet is not None
        self._wait_for_nothing()
        self._outlet.close()
        self._outlet = None
        self._loop.add_reader(self._source.fileno(), self._advance)
        self.on_output_error(error)

    def _say_dropped(self, error: OSError) -> None:
        self.say(f"console output: {error.strerror}; the guest goes on, its output is dropped")

    # Input

    def type_into(self, sink: InputSink) -> None:
        """Send what is typed from now on to *sink*; drop what the former sink had no room for."""
        self._offer()
        self._queue.clear()
        self._queued = 0
        self._sink = sink

    def input_ready(self) -> None:
        """Offer the sink what waits for it, now that it has room. Thread-safe."""
        self._loop.call_soon_threadsafe(self._offer)

    def _read(self) -> None:
        assert self._stdin is not None
        if self._terminal and not self._terminal.is_foreground():
            self._stop_reading()  # until SIGCONT
            return
        try:
            data = os.read(self._stdin, INPUT_CHUNK)
        except BlockingIOError:
            return
        except OSError:  # the terminal has hung up
            data = b""
        if not data:
            self._stop_reading()
            self._stdin = None
            self._offer()
            return
        for item in self._keys.feed(data):
            if isinstance(item, bytes) or item is EscapeCommand.BREAK:
                self._queue.append(item)
                self._queued += len(item) if isinstance(item, bytes) else 1
            else:
                self._obey(item)
        self._offer()

    def _obey(self, command: EscapeCommand) -> None:
        if command is EscapeCommand.QUIT:
            self.on_quit()
        elif command is EscapeCommand.RESET:
            self.on_reset()
        elif command in (EscapeCommand.INFLATE, EscapeCommand.DEFLATE):
            self.on_balloon(1 if command is EscapeCommand.INFLATE else -1)
        elif command is EscapeCommand.MAP:
            self.on_map()
        elif command is EscapeCommand.COUNTERS:
            self.on_counters()
        elif command is EscapeCommand.SWITCH:
            self.on_switch()
        elif command is EscapeCommand.SNAPSHOT:
            self.on_snapshot()
        elif command is EscapeCommand.HELP and self._escape is not None:
            self.say(*help_lines(self._escape))

    def _offer(self) -> None:
        if not self._open:
            return
        while self._queue:
            item = self._queue[0]
            if isinstance(item, EscapeCommand):
                size, taken = 1, int(self._sink.receive_break())
            else:
                size, taken = len(item), self._sink.receive(item)
            self._queued -= taken
            if taken < size:
                if isinstance(item, bytes):
                    self._queue[0] = item[taken:]
                break
            self._queue.popleft()
        if self._stdin is None and not self._queue:
            on_end, self.on_input_end = self.on_input_end, lambda: None
            on_end()
        # A pipe can wait. A user may want to type an escape key, above all if the guest hangs.
        if self._queued > (TYPE_AHEAD if self._terminal else 0):
            self._stop_reading()
        else:
            self._resume_reading()

    def _stop_reading(self) -> None:
        if self._stdin is not None and self._reading:
            self._reading = False
            self._loop.remove_reader(self._stdin)

    def _resume_reading(self) -> None:
        if self._stdin is not None and not self._reading:
            self._reading = True
            self._loop.add_reader(self._stdin, self._read)

    def _resized(self) -> None:
        if self.on_resize is not None and (size := terminal_size()):
            self.on_resize(*size)

    # Job control

    def _control_jobs(self) -> None:
        # If ignored, these become errors of calls that would otherwise stop the whole machine.
        for signum in (signal.SIGTTIN, signal.SIGTTOU):
            self._former_handlers[signum] = signal.signal(signum, signal.SIG_IGN)
        self._loop.add_signal(signal.SIGTSTP, self._suspend)
        self._loop.add_signal(signal.SIGCONT, self._continue)

    def _release_jobs(self) -> None:
        self._loop.remove_signal(signal.SIGCONT)
        self._loop.remove_signal(signal.SIGTSTP)
        for signum, handler in self._former_handlers.items():
            signal.signal(signum, handler)
        self._former_handlers.clear()

    def _take_terminal(self) -> None:
        if self._terminal and self._terminal.is_foreground():
            with suppress(termios.error):  # gone; reading will tell
                self._terminal.make_raw()

    def _suspend(self) -> None:
        """Stop, as SIGTSTP asks, after restoring the terminal for the shell."""
        assert self._terminal is not None
        self._terminal.restore()
        signal.raise_signal(signal.SIGSTOP)

    def _continue(self) -> None:
        """Continue after SIGCONT, in the foreground or in the background."""
        self._take_terminal()
        self._offer()
