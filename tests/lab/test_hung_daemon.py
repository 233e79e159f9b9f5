"""A machine whose disk's daemon hangs ends soon, with the right status, and leaves nothing."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable

import pytest

from tests.lab.storage import EVENTS, KERNEL, MODULES, command, shell
from vmm.lab.guest import fixture
from vmm.lab.host import packages
from vmm.lab.host.emulated_host import Host
from vmm.library.command import Command

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SOON = 20.0
"""Seconds: the daemon's grace period, and the time an emulated host needs for the rest."""

SCRIPT = """
echo up
read -r how
[ "$how" = reset ] && echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/unbind
[ "$how" = stay ] && read -r how
"""


@pytest.fixture
def host(lab_host: Callable[[str], Host]) -> Host:
    host = lab_host("fwb")
    packages.install(host, ["qemu-utils"])
    shell(host, "mkdir -p /run/disks /run/tmp; qemu-img create -q -f qcow2 /run/disks/hung 8M")
    return host


def leftovers(host: Host) -> str:
    """Return a list of daemons, their sockets, and mounts."""
    script = "ps | grep [q]emu-storage; ls /tmp/pyvmm-*/vhost-user; cat /proc/mounts"
    return shell(host, f"set +e; ({script}) 2>&1")


@pytest.mark.parametrize(
    ("typed", "end", "status"),
    [
        (b"reset\r", "power-off", 0),  # a vCPU's exit waits for the daemon
        (b"reset\r", "C-a x", 128 + signal.SIGINT),
        (b"stay\r", "SIGTERM", 128 + signal.SIGTERM),
    ],
)
def test_the_end_does_not_wait_for_it(host: Host, typed: bytes, end: str, status: int) -> None:
    guest = fixture.guest(KERNEL, modules=MODULES, script=SCRIPT)
    before = leftovers(host)
    with Command(host, command(guest, "--disk", "/run/disks/hung"), terminal=True) as talk:
        talk.expect(b"up\r")
        lines = [json.loads(line) for line in shell(host, f"cat {EVENTS}").splitlines()]
        (*_, pid) = (line["pid"] for line in lines if line["event"] == "daemon-started")
        shell(host, f"kill -STOP {pid}")
        began = time.monotonic()
        talk.send(typed)
        if end == "C-a x":
            talk.send(b"\x01x")
        elif end == "SIGTERM":
            talk.signal(signal.SIGTERM)
        assert talk.finish() == status, talk.story()
        assert time.monotonic() - began < SOON
    assert b"did not leave" not in talk.output, talk.story()
    names = [json.loads(line)["event"] for line in shell(host, f"cat {EVENTS}").splitlines()]
    assert names.count("daemon-killed") == 1
    assert leftovers(host) == before
