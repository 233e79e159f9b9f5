"""The part of scripts/soak that runs in the emulated host.

Reads what to do from stdin, as JSON, and writes what came of it to stdout:

    {"boots": N, "at_once": M, "kernel": ..., "initrd": ...,
     "load": {"kernel": ..., "initrd": ..., "address": ..., "port": ..., "slots": ..., "slot": ...}}

    {"boots": {"done": ..., "failures": [...], "samples": [{"descriptors": ...}, ...]},
     "load": {"rounds": ..., "failures": [...], "samples": [...]}, "left": [...]}
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import vmm

CMDLINE = "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"
PATIENCE = 600
"""Seconds that one boot may take."""
EVERY = 5
"""Seconds between looks at the machine under load."""
TAP = "soak0"


def sample(pid: int) -> dict[str, int]:
    """Return what process *pid* has now: descriptors, threads, bytes of resident memory."""
    place = Path(f"/proc/{pid}")
    pages = int((place / "statm").read_text().split()[1])
    return {
        "descriptors": sum(1 for _ in (place / "fd").iterdir()),
        "threads": sum(1 for _ in (place / "task").iterdir()),
        "resident": pages * os.sysconf("SC_PAGE_SIZE"),
    }


class Boots:
    """Boot machines in this process, several at once."""

    def __init__(self, task: dict[str, Any], place: Path) -> None:
        self._task, self._place = task, place
        self._left: SimpleQueue[int] = SimpleQueue()
        self.failures: list[str] = []
        self.done = 0
        self._lock = threading.Lock()

    def boot(self, number: int) -> None:
        """Boot one machine, to its guest's power-off."""
        disk = self._place / f"disk-{number}"
        disk.write_bytes(bytes(1 << 20))
        try:
            with vmm.Machine(
                self._task["kernel"],
                initrd=self._task["initrd"],
                cmdline=CMDLINE,
                memory="96M",
                disk=[str(disk)],
            ) as machine:
                machine.start()
                ending = machine.wait(PATIENCE)
            if ending != "powered-off":
                raise vmm.GuestError(f"it ended as {ending}")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  (it is counted)
            self.failures.append(f"{number}: {type(error).__name__}: {error}")
        finally:
            disk.unlink()
        with self._lock:
            self.done += 1

    def work(self) -> None:
        """Boot machines until there are none left to boot."""
        while True:
            try:
                self.boot(self._left.get_nowait())
            except Empty:
                return

    def batch(self, numbers: range) -> dict[str, int]:
        """Boot as many, and return what this process has once all are gone."""
        for number in numbers:
            self._left.put(number)
        workers = [threading.Thread(target=self.work) for _ in range(self._task["at_once"])]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        gc.collect()
        return sample(os.getpid())

    def run(self) -> dict[str, Any]:
        """Boot all in some batches; the first one warms up."""
        began = time.monotonic()
        boots, at_once = self._task["boots"], self._task["at_once"]
        size = max(2 * at_once, -(-boots // 8))
        samples = [
            self.batch(range(start, min(start + size, boots))) for start in range(0, boots, size)
        ]
        return {
            "done": self.done,
            "at_once": at_once,
            "failures": self.failures,
            "samples": samples,
            "seconds": time.monotonic() - began,
        }


def everything(client: socket.socket) -> bytes:
    """Return all that *client* sends until it is done."""
    return b"".join(iter(lambda: client.recv(1 << 16), b""))


def serve(listener: socket.socket) -> None:
    """Send back what each client sends, once it has sent all of it."""
    while True:
        client, _ = listener.accept()
        with client:
            try:
                client.sendall(everything(client))
            except OSError:
                continue  # the guest's checksum tells


def under_load(said: bytes) -> bool:
    """Return whether the machine is warm, and its guest has not ended."""
    return b"soak: slot 1 " in said and b" rounds, " not in said


def load(task: dict[str, Any], place: Path) -> dict[str, Any]:
    """Run the machine under load; compare its disk with what its guest said it wrote."""
    began = time.monotonic()
    for words in (
        f"ip tuntap add {TAP} mode tap vnet_hdr",
        f"ip address add {task['address']} dev {TAP}",
        f"ip link set {TAP} up",
    ):
        subprocess.run(words.split(), check=True)
    listener = socket.create_server(("", task["port"]))
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    disk, said = place / "disk", place / "said"
    disk.write_bytes(bytes(task["slots"] * task["slot"]))
    command = ["pyvmm", "run", "--host", "native", "--memory", "256M", "--cmdline", CMDLINE]
    command += ["--disk", str(disk), "--net", f"tap={TAP}", "--initrd", task["initrd"]]
    samples: list[dict[str, int]] = []
    try:
        with said.open("wb") as output:
            machine = subprocess.Popen(
                [*command, task["kernel"]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            while machine.poll() is None:
                time.sleep(EVERY)
                with suppress(OSError):  # it has ended
                    looked = sample(machine.pid)
                    if under_load(said.read_bytes()):  # after the look: it was so until then
                        samples.append(looked)
            status = machine.wait()
    finally:
        subprocess.run(["ip", "link", "delete", TAP], check=True)
    return judged(task, disk.read_bytes(), said.read_text(errors="replace"), status) | {
        "samples": samples,
        "seconds": time.monotonic() - began,
    }


def judged(task: dict[str, Any], disk: bytes, said: str, status: int) -> dict[str, Any]:
    """Return what the guest found, and whether the disk has what it wrote last."""
    failures = re.findall(r"soak: ((?:disk|net): round \d+)", said)
    end = re.search(r"soak: (\d+) rounds, (\d+) wrong", said)
    if status or end is None:
        failures.append(f"the machine ended with {status}: {said.strip()[-300:]}")
    written = dict(re.findall(r"soak: slot (\d+) ([0-9a-f]{32})", said))
    for slot, digest in written.items():
        part = disk[int(slot) * task["slot"] :][: task["slot"]]
        if hashlib.md5(part, usedforsecurity=False).hexdigest() != digest:
            failures.append(f"slot {slot} of the disk is not what the guest wrote")
    rounds = int(end[1]) if end else 0
    return {"rounds": rounds, "bytes": rounds * task["slot"], "failures": failures}


def ours(before: set[str]) -> list[str]:
    """Return processes and files that are there now and were not *before*."""
    return sorted(things() - before)


def things() -> set[str]:
    """Return pyvmm's processes, and what is in the directories for temporary files."""
    found = {str(path) for path in Path(tempfile.gettempdir()).iterdir()}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith((b"/pyvmm", b"passt", b"virtiofsd")) for word in words[:2]):
            found.add(f"process {process.name}: {b' '.join(words).decode(errors='replace')}")
    return found


def main() -> None:
    """Do what stdin asks for."""
    task = json.load(sys.stdin)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    before = things()
    place = Path(tempfile.mkdtemp(prefix="soak-"))
    found: dict[str, Any] = {}
    try:
        if task["boots"]:
            found["boots"] = Boots(task, place).run()
        if "load" in task:
            found["load"] = load(task["load"], place)
    finally:
        shutil.rmtree(place)
    found["left"] = ours(before)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
