"""Guests that move between two hosts, or are refused: with and without FEAT_S2FWB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
import trustme

from tests.lab.linked_hosts import ADDRESSES, linked
from tests.lab.moving import WORDS, end, events, inside, named, unbroken
from tests.lab.test_migration import LOAD, MOVES
from tests.state import certificates
from vmm.lab.guest import fixture
from vmm.lab.host.emulated_host import Host
from vmm.library.command import Command

pytestmark = [pytest.mark.lab, pytest.mark.timeout(2400)]

PORT = 7100


class Pair:
    """Two hosts, and the directory on this machine that both have."""

    def __init__(self, hosts: tuple[Host, Host], directory: Path) -> None:
        self.hosts = hosts
        self.directory = directory

    def start(self, owned: ExitStack, number: int, *words: str) -> Command:
        """Start ``pyvmm run`` on host *number*."""
        run = ["pyvmm", "run", "--host", "native", *words]
        return owned.enter_context(
            Command(self.hosts[number], inside(f"/host{self.directory}", run))
        )

    def wait(self, owned: ExitStack, number: int, *words: str) -> Command:
        """Have host *number* wait for a guest, with TLS."""
        there = self.start(owned, number, "--incoming", self.address(number), *words)
        listening = f"until grep -q ':{PORT:04X} .* 0A ' /proc/net/tcp; do sleep 0.2; done"
        assert self.hosts[number].run(["sh", "-c", listening], timeout=120).status == 0
        return there

    def address(self, number: int) -> str:
        return f"tcp:{ADDRESSES[number]}:{PORT},tls=pki{number}"

    def migrate(self, name: str, number: int, *words: str) -> tuple[int, str]:
        """Move the guest of *name* from the other host to *number*; return status and stderr."""
        here = 1 - number
        address = f"tcp:{ADDRESSES[number]}:{PORT},tls=pki{here}"
        words = ("pyvmm", "migrate", "--host", "native", name, address, *words)
        done = self.hosts[here].run(inside(f"/host{self.directory}", words), timeout=600)
        return done.status, done.stderr.decode()


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    authority = trustme.CA()
    for number, address in enumerate(ADDRESSES):
        certificates.write(tmp_path / f"pki{number}", authority, address)
    with linked(request.param, tmp_path) as hosts:
        yield Pair(hosts, tmp_path)


@pytest.mark.parametrize("pair", [("fwb", "fwb"), ("nofwb", "nofwb")], indirect=True)
def test_a_guest_moves_between_two_hosts(pair: Pair) -> None:
    """Four vCPUs, a disk that both hosts have, a memory writer; by TCP with TLS."""
    guest = fixture.guest(modules=["virtio_mmio", "virtio_blk", "virtio_rng"], script=LOAD)
    (pair.directory / "disk").write_bytes(bytes(8 << 20))
    machine = ["--cpus", "4", "--memory", "256M", "--rng", "--disk", "disk"]
    machine += ["--cmdline", WORDS, "--initrd", f"/host{guest.initrd}", f"/host{guest.kernel}"]
    text = b""
    with ExitStack() as owned:
        talk = pair.start(owned, 0, "--name", "move0", *machine)
        for turn in range(1, MOVES + 1):
            talk.expect(rb"disk \d+\r?\n")
            talk.expect(rb"count \d+ ")
            there = pair.wait(owned, turn % 2, "--name", f"move{turn}")
            words = ("--downtime", "2000", "--connections", "2")
            status, said = pair.migrate(f"move{turn - 1}", turn % 2, *words)
            assert status == 0, said + talk.story() + there.story()
            assert talk.finish() == 0, talk.story()
            text += bytes(talk.output)
            talk = there
        talk.expect(rb"disk \d+\r?\n")
        talk.expect(rb"count \d+ ")
        end(talk)
        text += bytes(talk.output)
    assert all(later >= earlier for earlier, later in pairwise(unbroken(text)))


@pytest.mark.parametrize("pair", [("fwb", "nofwb"), ("nofwb", "fwb")], indirect=True)
def test_a_host_with_fwb_and_one_without_take_no_guest_of_each_other(pair: Pair) -> None:
    """Refused by name before a page moves; the guest does not notice."""
    guest = fixture.guest(script='while read -r line; do echo "heard $line"; done')
    machine = ["--memory", "256M", "--cmdline", WORDS]
    machine += ["--initrd", f"/host{guest.initrd}", f"/host{guest.kernel}"]
    with ExitStack() as owned:
        talk = pair.start(owned, 0, "--name", "stays", "--events", "events", *machine)
        talk.send(b"before\n")
        talk.expect(rb"heard before")
        there = pair.wait(owned, 1)
        status, said = pair.migrate("stays", 1)
        assert status != 0
        assert "the guest goes on here" in said
        assert "FEAT_S2FWB" in said
        assert there.finish() != 0
        assert b"FEAT_S2FWB" in there.errors
        talk.send(b"after\n")
        talk.expect(rb"heard after")
        found = events(pair.hosts[0], f"/host{pair.directory}/events")
        assert not named(found, "migration-round"), "a page moved"
