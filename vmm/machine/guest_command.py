"""The host's side of a command in the guest: its streams, its status, and the kernel's messages.

pyvmm.stdin, .stdout, .stderr <--> this process's own      or hvc0 <--> the terminal
pyvmm.status  --> "started", "exit N", "error WHY"         (vmm/lab/guest/command.sh)
serial port   --> kept; shown if the guest fails
"""

from __future__ import annotations

import errno
import signal
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from vmm.closeable import Closeable
from vmm.config.command import STATUS, STDERR, STDIN, STDOUT
from vmm.errors import EXIT_SIGNAL_BASE, GuestError, HostError
from vmm.machine.machine import Ending
from vmm.terminal.console import StdioConsole, standard_input, standard_output
from vmm.terminal.output_filter import SHOWN, OutputFilter

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.errors import VmmError
    from vmm.loop import Loop
    from vmm.machine.machine import Machine
    from vmm.terminal.console import OutputSource
    from vmm.virtio.console.device import Console

KEPT: Final = 1 << 16
"""Bytes of the serial console's output, and of the status port's, that are kept."""

CHUNK: Final = 1 << 16
EXIT_MAX: Final = 255


class Output:
    """What the guest sends to the port *name* of *device*, as an `OutputSource`.

    Sending to several ports, a guest knows no order among them, and neither does the loop. So an
    empty pipe counts as the end only after a look into the queue.
    """

    def __init__(self, device: Console, name: str) -> None:
        self._device = device
        self._pipe, self._queue = device.pipe(name)

    def fileno(self) -> int:
        """Return the pipe's descriptor."""
        return self._pipe.fileno()

    def drain(self, limit: int, /) -> bytes:
        """Return up to *limit* bytes; b"": the guest has sent no more."""
        data = self._pipe.drain(limit)
        if not data:
            self._device.process(self._queue)
            data = self._pipe.drain(limit)
        return data


class GuestCommand(Closeable):
    """Join a command in *machine*'s guest to this process. Use as a context manager.

    Construct and close it in the thread of *loop*. *escape* is the prefix of pyvmm's own keys on a
    terminal, which the command has if *terminal* is set. *filtered*: show control characters of
    what the command and its guest say, instead of writing them.
    """

    def __init__(
        self,
        loop: Loop,
        machine: Machine,
        escape: int | None,
        *,
        terminal: bool,
        filtered: bool = False,
    ) -> None:
        assert machine.console is not None
        self._loop = loop
        self._machine = machine
        self._device = machine.console
        self._lines = b""
        self._filtered = filtered
        self._started = False
        self._status: int | None = None
        self._error: VmmError | None = None
        self.serial = b""
        """The end of what the guest has sent to the serial port."""
        self._report = Output(self._device, STATUS)
        self._owned = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            self.consoles = self._join_terminal(escape) if terminal else self._join_streams()
            self._watch(machine.output.fileno(), self._take_serial)
            self._watch(self._report.fileno(), self._take_report)
            undo.pop_all()

    def _watch(self, fd: int, callback: Callable[[], object]) -> None:
        self._loop.add_reader(fd, callback)
        self._owned.callback(self._loop.remove_reader, fd)

    def _shown(self, source: OutputSource) -> OutputSource:
        return OutputFilter(source) if self._filtered else source

    def _join_terminal(self, escape: int | None) -> list[StdioConsole]:
        end = self._machine.terminal
        assert end is not None
        stdin, stdout = standard_input(), standard_output()
        shown = self._shown(end)
        console = StdioConsole(self._loop, shown, end, stdin=stdin, stdout=stdout, escape=escape)
        end.on_space = console.input_ready
        console.on_resize = end.resize
        return [self._owned.enter_context(console)]

    def _join_streams(self) -> list[StdioConsole]:
        loop, stdin = self._loop, standard_input()
        end, _ = self._device.pipe(STDIN)
        out, err = (self._shown(Output(self._device, name)) for name in (STDOUT, STDERR))
        console = StdioConsole(
            loop, out, end, stdin=stdin, stdout=standard_output(), escape=None, raw=False
        )
        end.on_space = console.input_ready
        console.on_input_end = end.hang_up_after_input
        console.on_output_error = self._give_up
        errors = StdioConsole(
            loop,
            err,
            end,
            stdin=None,
            stdout=None if sys.stderr is None else sys.stderr.fileno(),
            escape=None,
        )
        errors.on_output_error = lambda _error: None
        for each in (console, errors):
            self._owned.enter_context(each)
        if stdin is None:
            end.hang_up_after_input()
        return [console, errors]

    def _give_up(self, error: OSError) -> None:
        """End the machine, as nobody can have the command's output."""
        if error.errno == errno.EPIPE:
            self._status = EXIT_SIGNAL_BASE + signal.SIGPIPE
        else:
            self._error = HostError(
                f"standard output: {error.strerror}", "COMMAND's output is incomplete"
            )
        self._machine.end(Ending.COMMAND_ENDED)

    def _take_serial(self) -> None:
        while data := self._machine.output.drain(CHUNK):
            self.serial = (self.serial + data)[-KEPT:]

    def _take_report(self) -> None:
        """Read the status port."""
        while data := self._report.drain(CHUNK):
            self._lines = (self._lines + data)[-KEPT:]
        *lines, self._lines = self._lines.split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "started":
                self._started = True
            elif self._status is None and self._error is None:
                if word == "exit" and rest.isdecimal() and int(rest) <= EXIT_MAX:
                    self._status = int(rest)
                else:
                    self._error = GuestError(f"COMMAND: the guest {rest or word}")
                self._machine.end(Ending.COMMAND_ENDED)

    def result(self, ending: Ending) -> int:
        """Return the command's status, after the machine's end.

        Raises `GuestError`: the guest ended without one. Its messages are on stderr then.
        """
        self._take_serial()
        self._take_report()
        if self._status is not None and self._error is None:
            return self._status
        if not isinstance(self._error, HostError):
            self._show_serial()
        if self._error is not None:
            raise self._error
        when = "had ended" if self._started else "could start"
        raise GuestError(f"{self._machine.told(ending)} before COMMAND {when}")

    def _show_serial(self) -> None:
        if sys.stderr is None:
            return
        self.consoles[0].on_output()
        text = self.serial.replace(b"\r\n", b"\n").decode(errors="replace").strip("\n")
        text = text.translate(SHOWN) if self._filtered else text
        with suppress(OSError):
            sys.stderr.write(f"{text}\n" if text else "")
            sys.stderr.flush()

    def close(self) -> None:
        """Write what can be written at once; restore the terminal. Idempotent."""
        self._owned.close()
