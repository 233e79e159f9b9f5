"""What cannot move is refused by name; a destination that fails leaves the guest where it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.guest.flat_guest import ECHO, assemble
from tests.lab.moving import events, inside, named, place, wait_for_socket
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside as in_host
from vmm.library.command import Command

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300), pytest.mark.profile("fwb")]

INVALID_SLOTS = """
from vmm.kvm.slots import MemorySlots
add = MemorySlots.add
MemorySlots.add = lambda self, base, size, host, flags=0: add(self, base, size, host, 1 << 31)
from vmm.cli import main
main()
"""
"""pyvmm whose memory slots have a flag that no kernel has: KVM says EINVAL."""


@pytest.mark.parametrize(
    ("options", "destination", "why"),
    [
        (["--pmem", "memory,size=2M"], ["pyvmm"], "pmem0: the guest writes"),
        (["--vsock", "3"], ["pyvmm"], "vsock: "),
        ([], ["python3", "-c", INVALID_SLOTS], "Invalid argument"),
    ],
    ids=["pmem", "vhost", "a slot that KVM refuses"],
)
def test_a_guest_stays_that_cannot_move(
    lab_host: Callable[[str], Host],
    tmp_path: Path,
    options: list[str],
    destination: list[str],
    why: str,
) -> None:
    """It is refused before a page moves, and the guest does not notice."""
    host = lab_host("fwb")
    directory, image = place(host), assemble(tmp_path, ECHO)
    run = ["pyvmm", "run", "--host", "native", "--name", "stays", "--memory", "32M"]
    there = ["run", "--host", "native", "--incoming", "unix:socket"]
    with (
        Command(host, inside(directory, [*run, "--events", "e", *options, in_host(image)])) as here,
        Command(host, inside(directory, [*destination, *there])) as other,
    ):
        here.expect(rb"ready:")
        wait_for_socket(host, f"{directory}/socket")
        move = ["pyvmm", "migrate", "stays", "unix:socket", "--host", "native"]
        moved = host.run(inside(directory, move))
        assert moved.status != 0
        assert why in moved.stderr.decode()
        assert other.finish() != 0, other.story()
        here.send(b"x")
        here.expect(rb"x")
        here.send(b"\x04")
        assert here.finish() == 0, here.story()
    assert not named(events(host, f"{directory}/e"), "migration-round"), "a page moved"
