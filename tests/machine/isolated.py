"""Isolate this process, then try what a guest that has taken it over would; print what came of it.

Usage: isolated.py USER    the user ID to become first
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable

from vmm.machine.isolate import isolate
from vmm.machine.seal import seal

PTRACE_ATTACH, MS_BIND, PR_SET_DUMPABLE = 16, 4096, 4
KEY = 0x7079766D
"""Of a segment of shared memory that the test has made."""

GROUP = 4711

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def tried(attack: Callable[[], object]) -> object:
    try:
        return str(attack())
    except OSError as error:
        return error.errno


def bystander() -> int:
    """Start a process of the same user, which ends with this one; return its process ID."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.closerange(0, read)
        os.close(write)
        os.read(read, 1)  # the end of this process closes the other end
        os._exit(0)
    return pid


def main() -> None:
    """Print the walls, the state of the process, and the errno of each attack, as JSON."""
    user, parent = int(sys.argv[1]), os.getppid()
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        checked(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))  # as a process that never was root's
    elif not os.geteuid():
        os.setgroups([GROUP])
    other = bystander()
    status = os.open("/proc/self/status", os.O_RDONLY)
    kept = os.open("/proc/self/maps", os.O_RDONLY)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    seal()
    walls = isolate()
    attacks: dict[str, Callable[[], object]] = {
        "open a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "open the root": lambda: os.open("/", os.O_RDONLY),
        "make a file": lambda: os.open("/tmp/made", os.O_RDWR | os.O_CREAT),
        "climb out": lambda: os.open("/".join([".."] * 20) + "/etc/passwd", os.O_RDONLY),
        "run a program": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606
        "connect": lambda: socket.socket().connect(("127.0.0.1", port)),
        "listen": lambda: socket.socket().bind(("127.0.0.1", 4711)),
        "send a datagram": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(
            b"x", ("127.0.0.1", port)
        ),
        "attach to shared memory": lambda: checked(libc.shmget(KEY, 1, 0)),
        "signal another process": lambda: os.kill(parent, 0),
        "signal a process of the same user": lambda: os.kill(other, 0),
        "trace another process": lambda: checked(libc.ptrace(PTRACE_ATTACH, parent, 0, 0)),
        "mount": lambda: checked(libc.mount(b"/", b"/", None, MS_BIND, None)),
        "change the root": lambda: os.chroot("/"),
        "become root": lambda: os.setuid(0),
        "load a module": lambda: checked(libc.init_module(b"", 0, b"")),
        "set the clock": lambda: checked(libc.settimeofday(ctypes.create_string_buffer(16), None)),
    }
    found = {name: tried(attack) for name, attack in attacks.items()}
    told = dict(line.split(":", 1) for line in os.read(status, 1 << 16).decode().splitlines())
    shown = {key: told[key].split() for key in ("Uid", "Gid", "Groups", "NoNewPrivs", "CapEff")}
    shown["CapBnd"] = told["CapBnd"].split()
    reads = len(os.read(kept, 100)) > 0
    result = {"walls": walls, "attacks": found, "process": shown, "open files work": reads}
    os.write(1, json.dumps(result).encode())
    signal.raise_signal(signal.SIGKILL)  # without Python's own clean-up, which opens files


main()
