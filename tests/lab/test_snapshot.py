"""A guest that is snapshotted, whose process ends, goes on in another process."""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from vmm.lab.guest import fixture
from vmm.lab.host.emulated_host import Host
from vmm.library.command import Command

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

LOAD = """
head -c 1048576 /dev/urandom >/tmp/data
sum=$(md5sum </tmp/data)
until [ -b /dev/vda ] && [ -c /dev/hvc0 ]; do :; done
disk() {
    while :; do
        dd if=/tmp/data of=/dev/vda bs=64k 2>/dev/null; sync
        echo 3 >/proc/sys/vm/drop_caches
        [ "$(head -c 1048576 /dev/vda | md5sum)" = "$sum" ] || echo DISK BROKEN
        rounds=$((rounds+1)); echo "disk $rounds"
    done
}
disk & disk=$!
other() {
    while :; do
        [ "$(md5sum </tmp/data)" = "$sum" ] || echo MEMORY BROKEN
        number=$((number+1)); echo "hvc $number" >/dev/hvc0
    done
}
other &
while :; do
    count=$((count+1)); read -r up rest </proc/uptime; echo "count $count up $up"
    sleep 1
done &
read -r line; echo "heard $line"
read -r line
kill $disk; wait $disk  # virtio devices are reset at power-off: what is read then fails
"""
WORDS = "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"


def place(host: Host) -> str:
    """Return an empty directory in *host* with a disk."""
    done = host.run(["sh", "-c", "cd $(mktemp -d) && truncate -s 8M disk && pwd"])
    return done.stdout.decode().strip()


def inside(directory: str, command: Sequence[str]) -> list[str]:
    """Return *command*, to be run in *directory* of a lab host."""
    return ["sh", "-c", f"cd {directory} && exec {shlex.join(command)}"]


def counts(text: bytes) -> list[tuple[int, float]]:
    """Return each whole line of a count, with the guest's uptime in seconds."""
    return [(int(n), float(up)) for n, up in re.findall(rb"count (\d+) up ([\d.]+)\r?\n", text)]


@pytest.mark.parametrize(
    ("profile", "transport"),
    [("fwb", "mmio"), ("fwb", "pci"), ("nofwb", "mmio"), ("gicv2", "mmio")],
)
def test_a_guest_goes_on_in_another_process(
    lab_host: Callable[[str], Host], profile: str, transport: str
) -> None:
    """Two vCPUs, a disk under load, two consoles; nothing lost, nothing broken, no time passed."""
    host = lab_host(profile)
    modules = [f"virtio_{transport}", "virtio_blk", "virtio_console", "virtio_rng"]
    guest = fixture.guest(modules=modules, script=LOAD)
    directory = place(host)
    run = ["pyvmm", "run", "--host", "native", "--events", "events"]
    machine = ["--cpus", "2", "--memory", "512M", "--rng", "--transport", transport]
    machine += ["--disk", "disk", "--console", "file=hvc", "--cmdline", WORDS, "--initrd"]
    machine += [f"/host{guest.initrd}", f"/host{guest.kernel}"]
    saving = [*run, "--snapshot", "saved,then=end", *machine]
    with Command(host, inside(directory, saving)) as talk:
        talk.expect(rb"disk 2\r?\n")
        talk.expect(rb"count \d+ ")
        talk.signal(signal.SIGUSR2)
        assert talk.finish() == 0, talk.story()
        first = bytes(talk.output)
        assert b"the snapshot is written" in talk.errors
    said = host.run(["cat", f"{directory}/hvc"]).stdout.decode()  # the next run begins it anew
    with Command(host, inside(directory, [*run, "--restore", "saved"])) as talk:
        talk.expect(rb"disk \d+\r?\n")
        talk.expect(rb"disk \d+\r?\n")
        talk.expect(rb"count \d+ ")
        talk.expect(rb"count \d+ ")  # a timer that was due at the pause rings, and the next one
        talk.send(b"hello\n")
        talk.expect(rb"heard hello")
        talk.send(b"stop\n")
        assert talk.finish() == 0, talk.story()
        text = first + bytes(talk.output)
    assert b"BROKEN" not in text
    found = counts(text)
    first_count = found[0][0]  # the console may drop what comes before it is set up
    assert [number for number, _ in found] == [*range(first_count, first_count + len(found))], found
    steps = [later - earlier for (_, earlier), (_, later) in pairwise(found)]
    assert min(steps) >= 0
    assert max(steps) < 60, "the guest's time jumped"
    said += host.run(["cat", f"{directory}/hvc"]).stdout.decode()
    numbers = [int(number) for number in re.findall(r"hvc (\d+)", said)]
    assert numbers == list(range(1, len(numbers) + 1))
    manifest = json.loads(host.run(["cat", f"{directory}/saved/manifest.json"]).stdout)
    assert manifest["format"] == "pyvmm snapshot"
    assert 0 < manifest["memory"]["stored"] < 512 << 20
