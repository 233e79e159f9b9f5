"""A guest under load moves from one process to another while it runs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise

import pytest

from tests.lab.moving import (
    COUNT,
    WORDS,
    disk_load,
    end,
    events,
    inside,
    named,
    place,
    unbroken,
    wait_for_socket,
)
from vmm.lab.guest import fixture
from vmm.lab.host.emulated_host import Host
from vmm.library.command import Command

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

LOAD = f"""{disk_load(1 << 18)}
until [ -b /dev/vda ]; do :; done
disk &
writer() {{
    while :; do
        head -c 1048576 /dev/urandom >/tmp/more; more=$(md5sum </tmp/more)
        cp /tmp/more /tmp/copy
        [ "$(md5sum </tmp/copy)" = "$more" ] || echo MEMORY BROKEN
        [ "$(md5sum </tmp/data)" = "$sum" ] || echo MEMORY BROKEN
        turns=$((turns+1)); echo "memory $turns"
    done
}}
writer &
{COUNT}
"""
MOVES = int(os.environ.get("PYVMM_MOVES", "2"))


@pytest.mark.parametrize(
    ("profile", "transport", "connections"),
    [("fwb", "mmio", 1), ("fwb", "pci", 2), ("nofwb", "mmio", 1), ("gicv2", "mmio", 1)],
)
def test_a_guest_moves_there_and_back(
    lab_host: Callable[[str], Host], profile: str, transport: str, connections: int
) -> None:
    """Four vCPUs, a disk and a memory writer: nothing lost, nothing broken, no time passed."""
    host = lab_host(profile)
    modules = [f"virtio_{transport}", "virtio_blk", "virtio_rng"]
    guest = fixture.guest(modules=modules, script=LOAD)
    directory = place(host)
    machine = ["--cpus", "4", "--memory", "256M", "--rng", "--transport", transport]
    machine += ["--disk", "disk", "--cmdline", WORDS, "--initrd"]
    machine += [f"/host{guest.initrd}", f"/host{guest.kernel}"]
    text = b""
    with ExitStack() as stack:
        kept: list[Command] = []
        for turn in range(MOVES + 1):
            run = ["pyvmm", "run", "--host", "native", "--events", f"events{turn}"]
            run += ["--name", f"move{turn}"]
            run += ["--incoming", f"unix:socket{turn}"] if turn else machine
            talk = stack.enter_context(Command(host, inside(directory, run)))
            kept.append(talk)
            if turn:
                wait_for_socket(host, f"{directory}/socket{turn}")
                move = ["pyvmm", "migrate", f"move{turn - 1}", f"unix:socket{turn}"]
                move += ["--host", "native", "--downtime", "2000"]
                moved = host.run(inside(directory, [*move, "--connections", str(connections)]))
                story = kept[turn - 1].story() + talk.story()
                assert moved.status == 0, moved.stderr.decode() + story
                assert b"moved in" in moved.stderr
                assert kept[turn - 1].finish() == 0, kept[turn - 1].story()
                text += bytes(kept[turn - 1].output)
            talk.expect(rb"disk \d+\r?\n")
            talk.expect(rb"count \d+ ")
        end(talk)
        text += bytes(talk.output)
    steps = [later - earlier for earlier, later in pairwise(unbroken(text))]
    assert min(steps) >= 0
    assert max(steps) < 60, "the guest's time jumped"
    said = named(events(host, f"{directory}/events0"), "moved")
    assert len(said) == 1
    assert (said[0]["maintained"] != 0) is (profile == "nofwb")
    assert (said[0]["there"] != 0) is (profile == "nofwb")
    assert re.search(rb"disk \d+", text)
