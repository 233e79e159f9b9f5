"""A guest that is snapshotted, whose process ends, goes on in another process."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.lab.moving import COUNT, WORDS, disk_load, end, inside, place, unbroken
from vmm.lab.guest import fixture
from vmm.lab.host.emulated_host import Host
from vmm.library.command import Command

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

LOAD = f"""{disk_load(1 << 20)}
until [ -b /dev/vda ] && [ -c /dev/hvc0 ]; do :; done
disk & disk=$!
other() {{
    while :; do
        [ "$(md5sum </tmp/data)" = "$sum" ] || echo MEMORY BROKEN
        number=$((number+1)); echo "hvc $number" >/dev/hvc0
    done
}}
other &
{COUNT}
kill $disk; wait $disk  # virtio devices are reset at power-off: what is read then fails
"""


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
        end(talk)
        text = first + bytes(talk.output)
    steps = [later - earlier for earlier, later in pairwise(unbroken(text))]
    assert min(steps) >= 0
    assert max(steps) < 60, "the guest's time jumped"
    said += host.run(["cat", f"{directory}/hvc"]).stdout.decode()
    numbers = [int(number) for number in re.findall(r"hvc (\d+)", said)]
    assert numbers == list(range(1, len(numbers) + 1))
    manifest = json.loads(host.run(["cat", f"{directory}/saved/manifest.json"]).stdout)
    assert manifest["format"] == "pyvmm snapshot"
    assert 0 < manifest["memory"]["stored"] < 512 << 20
