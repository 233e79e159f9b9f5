"""The destination of a migration ends at once: with all pages, and once it may run the guest."""

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

DIES = """
import os
from vmm.machine.incoming import Incoming
from vmm.state.reception import Reception
{}.{} = lambda *_: os._exit(9)
from vmm.cli import main
main()
"""


@pytest.mark.parametrize(
    ("where", "paused"),
    [(("Reception", "maintain"), False), (("Incoming", "started"), True)],
    ids=["with all pages", "with the guest"],
)
def test_a_destination_dies(
    lab_host: Callable[[str], Host],
    tmp_path: Path,
    where: tuple[str, str],
    paused: bool,  # noqa: FBT001  (a parameter)
) -> None:
    """The guest goes on with its disk; or, after go, when its user says so."""
    host = lab_host("fwb")
    directory, image = place(host), assemble(tmp_path, ECHO)
    run = ["pyvmm", "run", "--host", "native", "--name", "left", "--memory", "32M"]
    run += ["--disk", "disk", "--events", "e", in_host(image)]
    there = ["run", "--host", "native", "--incoming", "unix:socket"]
    with (
        Command(host, inside(directory, run)) as here,
        Command(host, inside(directory, ["python3", "-c", DIES.format(*where), *there])) as other,
    ):
        here.expect(rb"ready:")
        wait_for_socket(host, f"{directory}/socket")
        move = ["pyvmm", "migrate", "left", "unix:socket", "--host", "native"]
        moved = host.run(inside(directory, move))
        assert moved.status != 0
        assert other.finish() == 9, other.story()
        if paused:
            assert b"stays paused here" in moved.stderr
            host.run(["pyvmm", "resume", "left", "--host", "native"])
        here.send(b"x")
        here.expect(rb"x")
        here.send(b"\x04")
        assert here.finish() == 0, here.story()
    said = events(host, f"{directory}/e")
    assert bool(named(said, "migration-failed")) is not paused
    assert bool(named(said, "migration-unknown")) is paused
