"""A Python process that has imported a working tree's vmm, and forks to become a command.

Importing what `pyvmm run` needs takes seconds in an emulated host; forking takes 20 ms. The tree
that was installed last has one such process, which listens on a Unix socket. The agent hands
connections over to it whose command is `pyvmm`, or Python without options of its own.
"""

# pathlib takes 50 ms to import here, and exec is the point:
# ruff: noqa: PTH108, PTH123, S606
from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import threading
from contextlib import suppress
from types import ModuleType

from vmm.lab import protocol
from vmm.lab.inside.session import AgentSession

TYPE_CHECKING = False  # importing typing takes 50 ms in a lab host
if TYPE_CHECKING:
    from typing import Any

_PYTHONS = ("python", "python3")
_PRELOADED = (
    "vmm.cli",
    "vmm.cli.run",
    "vmm.machine.machine",
    "vmm._native",
    "vmm.config.codec",
    "vmm.cli.probe",
    "structlog",
    "vmm.control.control",
    "vmm.broker",
)
_LATER = (
    "vmm.machine.virtio_devices",
    "vmm.virtio.console.open",
    "vmm.virtio.fs.open",
    "vmm.machine.guest_command",
    "vmm.arm64.guest_command",
    "vmm.config.share",
    "tempfile",
    "pkgutil",
)
"""What only some commands need, `pyvmm run IMAGE -- COMMAND` all of it: imported while nobody
waits."""
_OWN = {"PYTHONPATH", "PYTHONSAFEPATH"}
"""Python's variables that the client always sets. Python reads others only when it starts."""
_SCAFFOLD = {__file__, "<frozen runpy>"}
_LENGTH = struct.Struct(">I")


def parse(payload: bytes) -> dict[str, Any]:
    """Return the request in *payload*."""
    request: dict[str, Any] = json.loads(payload)
    return request


def start(trees: str, name: str) -> None:
    """Start a zygote for the tree *name* unless it has one; end those of other trees."""
    path = f"{trees}/{name}.zygote"
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
    except OSError:  # there is one
        return
    listener.listen(64)
    _stop_others(trees)
    pid = os.fork()
    if pid:
        with open(f"{trees}/zygote.pid", "w") as file:
            file.write(f"{pid} {path}")
        return
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    console = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY)
    for number, fd in enumerate((null, console, console)):
        os.dup2(fd, number)
    os.set_inheritable(listener.fileno(), True)  # noqa: FBT003
    tree = f"{trees}/{name}"
    environment = {
        "PATH": "/usr/sbin:/usr/bin",
        "LANG": "C.UTF-8",
        "PYTHONPATH": tree,
        "PYTHONSAFEPATH": "1",
    }
    argv = ["python3", "-m", "vmm.lab.inside.zygote", str(listener.fileno())]
    os.execve("/usr/bin/python3", argv, environment)


def _stop_others(trees: str) -> None:
    try:
        with open(f"{trees}/zygote.pid") as file:
            pid, _, path = file.read().partition(" ")
        os.unlink(path)
        os.kill(int(pid), signal.SIGTERM)
    except (OSError, ValueError):
        pass


def _eligible(request: dict[str, Any]) -> bool:
    """Return whether a forked Python can become the request's command."""
    program, *arguments = request["argv"]
    if {name for name in request["env"] if name.startswith("PYTHON")} != _OWN:
        return False
    if program in _PYTHONS:
        return bool(arguments) and (
            not arguments[0].startswith("-") or arguments[0] in {"-m", "-c"}
        )
    return bool(program == "pyvmm")


def hand_over(connection: protocol.Connection, trees: str, payload: bytes) -> bool:
    """Give *connection*, whose request is *payload*, to the zygote of its tree.

    Return False if the caller must serve it.
    """
    request = parse(payload)
    if not request.get("tree") or not _eligible(request):
        return False
    with socket.socket(socket.AF_UNIX) as zygote:
        try:
            zygote.connect(f"{trees}/{request['tree']}.zygote")
        except OSError:
            return False
        socket.send_fds(zygote, [_LENGTH.pack(len(payload))], [connection.fileno()])
        zygote.sendall(payload + connection.unread)
    return True


def main() -> None:
    """Import what commands need, then fork for each connection until SIGTERM."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.set_inheritable(False)
    for name in _PRELOADED:
        _preload(name)
    _freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps commands
    later = list(_LATER)
    while True:
        while later and not select.select([listener], [], [], 0)[0]:
            _preload(later.pop(0))
            if not later:
                _freeze()
        sender, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                _take_over(sender)
            finally:
                os._exit(0)
        sender.close()


def _preload(name: str) -> None:
    try:
        __import__(name)
    except Exception as error:  # noqa: BLE001  (a tree under work: its commands will tell)
        sys.stderr.write(f"zygote: {name}: {error}\n")


def _freeze() -> None:
    """Keep a child's garbage collection from copying all pages."""
    gc.collect()
    gc.freeze()


def _take_over(sender: socket.socket) -> None:
    """Receive a connection from `hand_over`, and serve it."""
    header, descriptors, _, _ = socket.recv_fds(sender, _LENGTH.size, 1)
    (length,) = _LENGTH.unpack(header)
    data = bytearray()
    while part := sender.recv(protocol.CHUNK):
        data += part
    sender.close()
    stream = socket.socket(fileno=descriptors[0])
    connection = protocol.Connection(stream, bytes(data[length:]))
    AgentSession(connection, become).run(parse(bytes(data[:length])))


def become(request: dict[str, Any]) -> None:
    """Run the Python command of *request* in this process. Does not return."""
    os.closerange(3, 1024)  # as exec would: above all our ends of its pipes
    os.environ.clear()
    os.environ.update(request["env"])
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        buffering = 1 if number == 2 or os.isatty(number) else -1
        errors = "backslashreplace" if number == 2 else None
        stream = open(number, mode, buffering, errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    status = 1
    try:
        _run_main(request["argv"], request["tree"])
        status = 0
    except SystemExit as end:
        status = _status(end.code)
    except KeyboardInterrupt:
        _report()
        _flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001  (this is what Python's main does)
        _report()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
        atexit._run_exitfuncs()  # noqa: SLF001
        _flush()
        os._exit(status)


def _report() -> None:
    """Print the exception being handled, without the frames between here and the command."""
    kind, error, trace = sys.exc_info()
    while trace and trace.tb_next and trace.tb_frame.f_code.co_filename in _SCAFFOLD:
        trace = trace.tb_next
    assert kind
    assert error
    sys.excepthook(kind, error.with_traceback(trace), trace)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


def _status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


def _run_main(argv: list[str], tree: str) -> None:
    """Run the command line *argv* as Python's own main would."""
    program, *arguments = argv
    if program == "pyvmm":
        sys.argv = [f"/run/pyvmm/{tree}/bin/pyvmm", *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        module = ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(arguments[1], "<string>", "exec"), module.__dict__)  # noqa: S102
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
