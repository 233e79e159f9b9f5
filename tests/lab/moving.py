"""A guest that goes on elsewhere: from a snapshot, or moved while it runs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence

from vmm.lab.host.emulated_host import Host
from vmm.library.command import Command

WORDS = "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"

COUNT = """
while :; do
    count=$((count+1)); read -r up rest </proc/uptime; echo "count $count up $up"
    sleep 1
done &
read -r line; echo "heard $line"
read -r line
"""
"""Count, until two lines were typed: `end` does that."""


def disk_load(size: int) -> str:
    """Return a guest's script that fills /tmp/data, and keeps it on the disk: `disk`, to be called.

    *size* is in bytes. It says ``disk N`` after each round, and BROKEN if something is.
    """
    return f"""
head -c {size} /dev/urandom >/tmp/data
sum=$(md5sum </tmp/data)
disk() {{
    while :; do
        dd if=/tmp/data of=/dev/vda bs=64k 2>/dev/null; sync
        echo 3 >/proc/sys/vm/drop_caches
        [ "$(head -c {size} /dev/vda | md5sum)" = "$sum" ] || echo DISK BROKEN
        rounds=$((rounds+1)); echo "disk $rounds"
    done
}}
"""


def place(host: Host) -> str:
    """Return an empty directory in *host* with a disk."""
    done = host.run(["sh", "-c", "cd $(mktemp -d) && truncate -s 8M disk && pwd"])
    return done.stdout.decode().strip()


def inside(directory: str, command: Sequence[str]) -> list[str]:
    """Return *command*, to be run in *directory* of a lab host."""
    return ["sh", "-c", f"cd {directory} && exec {shlex.join(command)}"]


def wait_for_socket(host: Host, path: str) -> None:
    """Wait until a machine in *host* waits for a guest at *path*."""
    host.run(["sh", "-c", f"until [ -S {path} ]; do sleep 0.2; done"])


def end(talk: Command) -> None:
    """Let the guest of `COUNT` hear something, and power off."""
    talk.send(b"hello\n")
    talk.expect(rb"heard hello")
    talk.send(b"stop\n")
    assert talk.finish() == 0, talk.story()


def unbroken(text: bytes) -> list[float]:
    """Check that no count of `COUNT` is missing in *text*; return the guest's uptimes, in seconds.

    Nor is anything BROKEN.
    """
    assert b"BROKEN" not in text
    found = re.findall(rb"count (\d+) up ([\d.]+)\r?\n", text)
    numbers = [int(number) for number, _ in found]
    first = numbers[0]  # the console may drop what comes before it is set up
    assert numbers == [*range(first, first + len(numbers))], found
    return [float(up) for _, up in found]


def events(host: Host, path: str) -> list[dict[str, object]]:
    """Return the events in *path* of *host*."""
    return [json.loads(line) for line in host.run(["cat", path]).stdout.splitlines()]


def named(found: list[dict[str, object]], name: str) -> list[dict[str, object]]:
    """Return those of the events *found* that are called *name*."""
    return [each for each in found if each["event"] == name]
