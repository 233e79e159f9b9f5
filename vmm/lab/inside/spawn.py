"""Start one command in the lab host, with a terminal or pipes and a session of its own."""

# pathlib takes 50 ms to import here, and exec is the point:
# ruff: noqa: PTH123, PTH208, S606
from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
from contextlib import suppress

from vmm.lab import protocol

TYPE_CHECKING = False  # importing typing takes 50 ms in a lab host
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class SpawnedCommand:
    """A running command.

    *outputs* maps each descriptor to read to the kind of frame that carries its output. *input* is
    the descriptor to write to, -1 once it is closed.
    """

    def __init__(self, pid: int, outputs: dict[int, bytes], stdin: int, *, terminal: bool) -> None:
        self.pid = pid
        self.outputs = outputs
        self.input = stdin
        self._terminal = terminal
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, 128 + N for signal N; None while the command runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._status = code if code >= 0 else 128 - code
        return self._status

    def close_output(self, fd: int) -> None:
        """Close and forget an output that has ended."""
        del self.outputs[fd]
        if fd != self.input:
            os.close(fd)

    def end_input(self) -> None:
        """End the command's input: close the pipe, or type ^D."""
        if self.input < 0:
            return
        if self._terminal:
            os.write(self.input, b"\x04")  # VEOF: what ^D types
        else:
            os.close(self.input)
            self.input = -1

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; the kernel sends SIGWINCH."""
        if self._terminal:
            _set_size(self.input, rows, columns)

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def session(self) -> list[int]:
        """Return the ids of all processes of the command's session, in whatever process group."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat", "rb") as file:
                        fields = file.read().rpartition(b")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.pid and fields[0] != b"Z":
                    found.append(int(name))
        return found


def _set_size(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def execute(request: dict[str, Any]) -> None:
    """Replace this process by the program that *request* names. Returns only by OSError."""
    # Python ignores these two; what it starts should not.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execvpe(request["argv"][0], request["argv"], request["env"])


def start(request: dict[str, Any], become: Callable[[dict[str, Any]], None]) -> SpawnedCommand:
    """Start the command of *request*: argv, env, cwd, and tty: [rows, columns] or None.

    *become* is called in the new process, whose session, descriptors and directory are set; it
    must not return, but may raise OSError. Raises OSError if the command can't be started.
    """
    failure, failed = os.pipe()  # close-on-exec: ends when exec succeeds
    if request["tty"]:
        leader, follower = os.openpty()
        _set_size(leader, *request["tty"])
        ours = {leader: protocol.OUTPUT}
        stdin, theirs = leader, (follower, follower, follower)
    else:
        stdin_read, stdin = os.pipe()
        stdout, stdout_write = os.pipe()
        stderr, stderr_write = os.pipe()
        ours = {stdout: protocol.OUTPUT, stderr: protocol.ERRORS}
        theirs = (stdin_read, stdout_write, stderr_write)
    pid = os.fork()
    if pid == 0:
        try:
            _prepare(request, theirs)
            if become is not execute:
                os.close(failed)
            become(request)
        except OSError as error:
            os.write(failed, str(error.errno).encode())
        finally:
            os._exit(127)
    for fd in {*theirs, failed}:
        os.close(fd)
    os.set_blocking(stdin, False)
    number = os.read(failure, 16)
    os.close(failure)
    if number:
        os.waitpid(pid, 0)
        raise OSError(int(number), os.strerror(int(number)))
    return SpawnedCommand(pid, ours, stdin, terminal=bool(request["tty"]))


def _prepare(request: dict[str, Any], descriptors: tuple[int, ...]) -> None:
    """Set this process's session, descriptors and directory to the command's."""
    os.setsid()
    for number, fd in enumerate(descriptors):
        os.dup2(fd, number)
    if request["tty"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(request["cwd"])
