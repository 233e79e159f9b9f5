"""``pyvmm shell``: a Python prompt inside the machine's process, for whoever asks for one.

It is code execution by design, so it is there only with ``--shell``. All that the prompt needs is
imported before the process is sealed; what the sealed process may not do, it may not either.
"""

from __future__ import annotations

import builtins
import code
import errno
import os
import queue
import sys
import threading
import traceback
from functools import partial
from io import TextIOBase
from typing import TYPE_CHECKING, Any, Final

from vmm import thread
from vmm.control.routes import Feed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.control.routes import Channel

PROTOCOL: Final = "pyvmm-shell"
BANNER: Final = "machine is the running machine (vmm.Machine); a line with only C-d leaves"
ONE: Final = threading.Lock()
"""One prompt at a time: ``sys.displayhook`` is its."""


class _Lines(TextIOBase):
    """What a prompt prints, for its client."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def write(self, text: str) -> int:
        self._channel.post(text.encode(errors="replace"))
        return len(text)


class Prompt(code.InteractiveConsole):
    """A prompt for the client at *channel*, with *names* in it, in a thread of its own."""

    def __init__(self, names: dict[str, Any], channel: Channel) -> None:
        printed = partial(print, file=_Lines(channel))
        own = {"print": printed, "__import__": _import, "open": _open, "exit": _exit, "quit": _exit}
        known = {"__builtins__": {**vars(builtins), **own}}
        super().__init__({**names, **known}, filename="<pyvmm shell>")
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._typed = bytearray()
        self._channel = channel
        channel.on_data = self._take
        channel.on_gone = lambda: self._lines.put(None)

    def _take(self, data: bytes) -> None:
        """Take what the client sends: lines, and EOT (4) at their end."""
        self._typed += data
        *lines, rest = bytes(self._typed).split(b"\n")
        self._typed[:] = rest
        for line in lines:
            self._lines.put(line.decode(errors="replace"))
        if rest == b"\x04":
            self._lines.put(None)

    def raw_input(self, prompt: str = "") -> str:
        """Return the next line. Raises EOFError at the end."""
        self.write(prompt)
        line = self._lines.get()
        if line is None:
            raise EOFError
        return line

    def write(self, data: str) -> None:
        """Send *data* to the client."""
        self._channel.post(data.encode(errors="replace"))

    def _display(self, value: object) -> None:
        if value is not None:
            self.write(f"{value!r}\n")

    def showtraceback(self) -> None:
        """Show the error that a line has raised, without source lines: no file can be opened."""
        kind, error, trace = sys.exc_info()
        for frame, line in traceback.walk_tb(trace and trace.tb_next):
            where = frame.f_code
            self.write(f'  File "{where.co_filename}", line {line}, in {where.co_name}\n')
        self.write("".join(traceback.format_exception_only(kind, error)))

    def serve(self) -> None:
        """Prompt until the client leaves."""
        if not ONE.acquire(blocking=False):
            self.write("somebody else has the prompt\n")
            self._channel.end()
            return
        try:
            sys.displayhook = self._display  # called for what a prompt runs, and nothing else
            self.interact(BANNER, "")
        except SystemExit:  # exit(), of the prompt and not of the machine
            pass
        finally:
            ONE.release()
            self._channel.end()


def _import(
    name: str,
    global_names: Mapping[str, object] | None = None,
    local_names: Mapping[str, object] | None = None,
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> object:
    """Return a module that is there; the process may be sealed, and open no other."""
    module = sys.modules.get(name)
    if module is None or any(not hasattr(module, each) for each in fromlist or ()):
        raise ImportError(f"{name}: only what the machine's process has imported can be")
    return builtins.__import__(name, global_names, local_names, fromlist, level)


def _open(*_arguments: object, **_more: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def _exit(*_status: object) -> None:
    raise SystemExit


def shell(names: dict[str, Any]) -> Feed:
    """Return the feed of a client that gets a prompt with *names*."""

    def begin(channel: Channel) -> None:
        thread.start("shell", Prompt(names, channel).serve)

    return Feed(begin, lambda missing: f"\npyvmm: {missing} bytes were lost\n".encode())
