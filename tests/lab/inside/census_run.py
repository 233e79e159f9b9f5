"""Run in a lab host: ``pyvmm``, noting every system call of the confined process.

    census_run.py FILE SOCKET ARGUMENT...

ARGUMENTs are those of ``pyvmm``, without --sandbox. Writes to FILE each call with the kind of
thread that made it, and the modules that were imported after the process was confined. A client of
SOCKET, if that appears, sends back what it gets.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[3]))

from vmm import sandbox
from vmm._native import lib
from vmm.cli import main
from vmm.machine.machine import Machine

file, path, *arguments = sys.argv[1:]
found: dict[str, Any] = {}
confine = Machine.confine


def echo() -> None:
    """Connect to the socket, and send back what comes."""
    with socket.socket(socket.AF_UNIX) as client:
        while True:
            with suppress(OSError):
                client.connect(path)
                break
            time.sleep(0.1)
        while data := client.recv(4096):
            client.sendall(data)


def confine_and_look(self: Machine, **options: bool) -> None:
    confine(self, **options)
    found["before"] = sorted(sys.modules)


def tell() -> None:
    if os.getpid() == parent:
        found["late"] = sorted({*sys.modules} - {*found.pop("before", sys.modules)})
        found["seen"] = [(each.call, each.thread) for each in sandbox.denials()]
        output.write(json.dumps(found))
        output.close()


parent = os.getpid()
child = os.fork()
if not child:
    try:
        echo()
    finally:
        os._exit(0)
atexit.register(os.kill, child, signal.SIGKILL)
output = Path(file).open("w")  # noqa: SIM115  (before it is too late)
atexit.register(tell)
Machine.confine = confine_and_look  # type: ignore[method-assign]
sandbox.MODES["log"] = lib.PYVMM_SANDBOX_CENSUS
run, *others = arguments
sys.argv = ["pyvmm", run, "--sandbox", "log", *others]
sys.exit(main())
