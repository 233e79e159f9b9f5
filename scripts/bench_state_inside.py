"""The part of scripts/bench state that runs in the emulated host.

Reads what to do from stdin, as JSON, and writes samples by name to stdout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

PLACE = Path("/run/bench")
PATIENCE = 900.0
MIB = 1 << 20


class Vmm:
    """A VMM's process, whose guest's console is its standard output. A context manager."""

    def __init__(self, command: list[str]) -> None:
        self._program = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.pid = self._program.pid
        self._said = b""

    def expect(self, word: bytes) -> None:
        """Wait until the guest says *word* once more."""
        assert self._program.stdout is not None
        while word not in self._said:
            data = os.read(self._program.stdout.fileno(), 65536)
            if not data:
                _, errors = self._program.communicate()
                sys.exit(f"process {self.pid} ended: {errors[-300:]!r}")
            self._said += data
        self._said = self._said.partition(word)[2]

    def wait(self) -> None:
        """Wait for its end."""
        self._program.communicate(timeout=PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.kill()
        self._program.communicate()


class Bench:
    """What *task* asks for."""

    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task
        for name, path in task["files"].items():
            shutil.copy(path, PLACE / name)
        if task["install"]:
            subprocess.run([task["install"], str(PLACE)], check=True)
        os.chdir(PLACE)

    def command(self, vmm: str, memory: int, *more: str) -> list[str]:
        """Return the command line of *vmm* with *memory* MiB."""
        values = {"kernel": str(PLACE / "kernel"), "initrd": str(PLACE / "initrd")}
        values |= {"cmdline": self._task["cmdline"], "memory": str(memory)}
        return [*(word.format_map(values) for word in self._task[vmm]), *more]

    def run(self) -> dict[str, Any]:
        """Return all samples."""
        found: dict[str, Any] = {"snapshot": [], "dd": [], "restore": {"256": [], "4096": []}}
        for memory in (256, 4096):
            for _ in range(self._task["rounds"]):
                self._save(memory, found)
                found["restore"][str(memory)].append(self._restore())
            if memory == 256:
                found |= self._clones()
        found["migration"] = {"pyvmm": [], **({"QEMU": []} if self._task["qemu"] else {})}
        for _ in range(self._task["rounds"]):
            found["migration"]["pyvmm"].append(self._move())
            if self._task["qemu"]:
                found["migration"]["QEMU"].append(self._move_qemu())
        return found

    def _save(self, memory: int, found: dict[str, Any]) -> None:
        shutil.rmtree("saved", ignore_errors=True)
        more = ("--snapshot", "saved,then=end", "--events", "events")
        with Vmm(self.command("pyvmm", memory, *more)) as vmm:
            vmm.expect(b"ready")
            os.kill(vmm.pid, signal.SIGUSR2)
            vmm.wait()
        taken = event("snapshot")
        if memory != 256:
            return
        found["snapshot"].append(taken["stored"] / taken["seconds"] / 1e6)
        Path("blob").write_bytes(os.urandom(MIB) * (taken["stored"] // MIB))
        began = time.monotonic()
        subprocess.run(
            ["dd", "if=blob", "of=copy", "bs=1M", "conv=fsync"],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        found["dd"].append(taken["stored"] // MIB * MIB / (time.monotonic() - began) / 1e6)

    def _restore(self) -> float:
        command = ["pyvmm", "run", "--host", "native", "--restore", "saved", "--events", "events"]
        with Vmm(command) as vmm:
            vmm.expect(b"tick")
        for line in Path("events").read_text().splitlines():
            each = json.loads(line)
            if each["event"] == "phase" and each["name"] == "the guest is loaded":
                return float(each["since_start"])
        sys.exit("no phase of a start is in the events")

    def _clones(self) -> dict[str, list[float]]:
        command = ["pyvmm", "run", "--host", "native", "--restore", "saved"]
        with ExitStack() as owned:
            vmms = [owned.enter_context(Vmm(command)) for _ in range(self._task["clones"])]
            for vmm in vmms:
                for _ in range(3):
                    vmm.expect(b"tick")
            texts = [Path(f"/proc/{vmm.pid}/smaps_rollup").read_text() for vmm in vmms]

        def sizes(name: str) -> list[float]:
            return [int(re.search(rf"(?m)^{name}: +(\d+)", text)[1]) / 1024 for text in texts]  # type: ignore[index]

        return {"rss": sizes("Rss"), "pss": sizes("Pss")}

    def _move(self) -> dict[str, float]:
        away = self.command("pyvmm", 256, "--name", "away", "--events", "events")
        there = ["pyvmm", "run", "--host", "native", "--incoming", "unix:socket", "--name", "there"]
        with Vmm(away) as source, Vmm(there) as destination:
            source.expect(b"tick")
            wait_for("socket")
            move = ["pyvmm", "migrate", "--host", "native", "away", "unix:socket"]
            move += ["--downtime", str(self._task["downtime"])]
            subprocess.run(move, check=True, capture_output=True)
            destination.expect(b"tick")
        moved = event("moved")
        return {"downtime": moved["downtime"], "total": moved["seconds"]}

    def _move_qemu(self) -> dict[str, float]:
        def command(name: str, *more: str) -> list[str]:
            return self.command("qemu", 256, "-qmp", f"unix:{name},server=on,wait=off", *more)

        Path("socket").unlink(missing_ok=True)
        there = command("b.qmp", "-incoming", "unix:socket")
        with Vmm(command("a.qmp")) as source, Vmm(there) as destination:
            source.expect(b"tick")
            wait_for("socket")
            with Qmp("a.qmp") as qmp:
                limit = self._task["downtime"]
                qmp.ask(
                    "migrate-set-parameters", {"downtime-limit": limit, "max-bandwidth": 1 << 40}
                )
                qmp.ask("migrate", {"uri": "unix:socket"})
                while (state := qmp.ask("query-migrate"))["status"] not in ("completed", "failed"):
                    time.sleep(0.2)
            if state["status"] == "failed":
                sys.exit(f"QEMU's migration failed: {state}")
            destination.expect(b"tick")
        return {"downtime": state["downtime"] / 1000, "total": state["total-time"] / 1000}


class Qmp:
    """QEMU's monitor at *path*. A context manager."""

    def __init__(self, path: str) -> None:
        wait_for(path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Return what *command* returns."""
        text = json.dumps({"execute": command, "arguments": arguments or {}})
        self._socket.sendall(text.encode())
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                sys.exit(f"QEMU: {command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()


def event(name: str) -> dict[str, Any]:
    """Return the last event of *name*."""
    for line in reversed(Path("events").read_text().splitlines()):
        each: dict[str, Any] = json.loads(line)
        if each["event"] == name:
            return each
    sys.exit(f"there is no event {name}")


def wait_for(path: str) -> None:
    """Wait until *path* exists."""
    deadline = time.monotonic() + PATIENCE
    while not os.path.exists(path):  # noqa: PTH110  (pathlib is dear here)
        if time.monotonic() > deadline:
            sys.exit(f"{path} does not come")
        time.sleep(0.1)


def main() -> None:
    """Do what stdin asks for."""
    PLACE.mkdir(exist_ok=True)
    json.dump(Bench(json.load(sys.stdin)).run(), sys.stdout)


if __name__ == "__main__":
    main()
