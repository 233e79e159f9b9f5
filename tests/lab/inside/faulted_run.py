"""Run in a lab host: let each system call of a whole ``pyvmm run`` fail once.

    faulted_run.py MOST ARGUMENT...

ARGUMENTs are those of ``pyvmm``; about MOST calls of a kind fail, or all if it is 0. What may come
of a fault: the machine lives, or the command ends with one clear line. Nothing of it may be left:
no process, no file in the current directory or in the run directory that was not there before.

One line of JSON tells of each fault: what it was, the status, and what is wrong, if anything is.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[3]))

from tests.faults import supervisor
from tests.faults.selection import faults
from vmm import cli, errors
from vmm.run_directory import run_directory

PR_SET_CHILD_SUBREAPER = 36
ORDERLY = (0, errors.EXIT_USER, errors.EXIT_HOST)
PATIENCE = 60.0
"""Seconds until a machine has ended, and what it has started."""
SAID, IMPORTED = (Path(tempfile.gettempdir()) / f"faulted-{name}" for name in ("said", "imported"))

most, *arguments = sys.argv[1:]
supervisor.PATIENCE = int(PATIENCE)  # type: ignore[misc]


def pyvmm() -> int:
    """Be the command; return its status."""
    output = os.open(SAID, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for fd in (1, 2):
        os.dup2(output, fd)
    os.close(output)
    sys.argv = ["pyvmm", *arguments]
    try:
        with suppress(OSError):
            os.lseek(-1, 0, os.SEEK_CUR)  # from here on calls count: see `supervisor.counted`
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:  # noqa: BLE001  (a finding)
        traceback.print_exc()
        return errors.EXIT_BUG


def first() -> int:
    """Be the command, and tell which modules it has imported: imports are no subject."""
    output = IMPORTED.open("w")  # before the process is sealed
    try:
        return pyvmm()
    finally:
        output.write("\n".join(sys.modules))
        output.close()


def files() -> set[str]:
    """Return what there is in the current directory and in the run directory."""
    return {str(path) for place in (Path.cwd(), run_directory()) for path in place.rglob("*")}


def children() -> list[int]:
    """Return the processes that are this one's, its descendants' orphans among them; reap."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(each) for each in path.read_text().split()]


def left(before: set[str]) -> list[str]:
    """Return what is left of a run, once it had its time; end it."""
    deadline = time.monotonic() + PATIENCE
    while (processes := children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    found = []
    for process in processes:
        with suppress(OSError):
            found.append(Path(f"/proc/{process}/cmdline").read_text().replace("\0", " "))
            os.kill(process, signal.SIGKILL)
    new = sorted(files() - before)
    for name in new:
        with suppress(OSError):
            Path(name).unlink()
    return found + new


def wrong_with(status: int, said: str, before: set[str]) -> str:
    """Return what is wrong with a run's end; nothing if it was in order."""
    if "Traceback" in said or status not in ORDERLY:
        return said or "it says nothing"
    if status and not any(line.startswith("pyvmm: ") for line in said.splitlines()):
        return f"no line of pyvmm's: {said}"
    if remains := left(before):
        return f"left: {remains}"
    return ""


def main() -> int:
    """Run all faults; return how many went wrong."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pid = os.fork()
    if pid == 0:
        os._exit(first())
    _, status = os.waitpid(pid, 0)
    assert status == 0, SAID.read_text()
    for name in IMPORTED.read_text().split():
        with suppress(ImportError):
            importlib.import_module(name)
    before = files()
    whole = supervisor.run(pyvmm)
    assert whole.status == 0, SAID.read_text()
    assert not left(before)
    print(  # noqa: T201
        json.dumps({"calls": len(whole.calls), "kinds": sorted({*whole.calls})}), flush=True
    )
    bad = 0
    wanted = faults(whole.calls, int(most))
    if int(most) == 1:  # one error as well: a run takes seconds here
        wanted = list({fault.call: fault for fault in wanted}.values())
    for fault in wanted:
        try:
            outcome = supervisor.run(pyvmm, fault)
            status, given = outcome.status, outcome.given
            wrong = wrong_with(status, SAID.read_text(errors="replace"), before)
        except TimeoutError as error:
            status, given, wrong = errors.EXIT_TIMEOUT, True, f"{error}; left: {left(before)}"
        bad += bool(wrong)
        line = {"fault": str(fault), "given": given, "status": status, "wrong": wrong[-2000:]}
        print(json.dumps(line), flush=True)  # noqa: T201
    return bad


if __name__ == "__main__":
    sys.exit(min(main(), 1))
