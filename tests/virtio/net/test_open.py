"""From ``--net`` to a device: what moves its packets, and what is reported. As root only."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recorded import Recorded
from tests.virtio.mmio_driver import MmioDriver
from tests.virtio.net.net_driver import wait
from tests.virtio.ring_driver import BASE, BUFFERS, Buffer, Memory, SplitDriver
from vmm.config.net import parse_net
from vmm.errors import HostError, KernelError
from vmm.memory import GuestMemory, Mapping
from vmm.virtio import status
from vmm.virtio.net import vhost_net
from vmm.virtio.net.device import Net
from vmm.virtio.net.open import PREFIX, open_net
from vmm.virtio.net.tap import PATH
from vmm.virtio.net.threads import ThreadBackend
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access(PATH, os.R_OK), reason=f"needs root, and {PATH}"
)


@pytest.fixture
def memory() -> Iterator[MemoryMap]:
    with Mapping.anonymous(1 << 20) as mapping:
        yield MemoryMap(GuestMemory([mapping.region(1 << 30)]))


@pytest.fixture(autouse=True)
def _no_vhost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vhost_net, "PATH", str(tmp_path / "vhost-net"))


def test_without_vhost_net_threads_move_packets(memory: MemoryMap) -> None:
    events, said = Recorded(), list[str]()
    with open_net("net0", parse_net("tap,queues=2"), memory, events, said.append) as device:
        assert isinstance(device, Net)
        assert isinstance(device.backend, ThreadBackend)
        why, up = (fields for _, fields in events.seen)
        assert "load its module: modprobe vhost_net" in str(why["error"])
        assert up["vhost"] is False
        assert said == [f"--net tap,queues=2: the host's side is {up['tap']}"]
        assert device.config()[:3] == PREFIX
        assert Path(f"/sys/class/net/{up['tap']}").exists()
    assert not Path(f"/sys/class/net/{up['tap']}").exists()


def test_who_insists_on_vhost_hears_why_not_and_nothing_stays(memory: MemoryMap) -> None:
    before = {entry.name for entry in Path("/proc/self/fd").iterdir()}
    with pytest.raises(HostError, match=r"--net tap=pyvmm7,vhost=on: cannot open .*/vhost-net: "):
        open_net("net0", parse_net("tap=pyvmm7,vhost=on"), memory, Recorded())
    with pytest.raises(KernelError):
        open_net("net0", parse_net("tap=pyvmm7,vhost=off,bridge=lo"), memory, Recorded())
    assert not Path("/sys/class/net/pyvmm7").exists()
    assert {entry.name for entry in Path("/proc/self/fd").iterdir()} == before


def test_the_mac_address_stays_as_it_was_asked_for(memory: MemoryMap) -> None:
    said: list[str] = []
    config = parse_net("tap=pyvmm7,vhost=off,mac=52:54:00:00:00:07,mtu=1400")
    with open_net("net0", config, memory, Recorded(), said.append) as device:
        assert device.config()[:6] == bytes.fromhex("525400000007")
        assert Path("/sys/class/net/pyvmm7/mtu").read_text() == "1400\n"
    assert said == []


def test_an_interface_that_is_deleted_is_a_dead_link_and_no_more() -> None:
    """Packets are dropped, and no thread spins."""
    memory, events = Memory(), Recorded()
    config = parse_net("tap=pyvmm7,vhost=off")
    device = open_net("net0", config, MemoryMap(memory.guest), events)
    with MmioTransport(device) as transport:
        driver = MmioDriver(transport)
        driver.negotiate()
        rx, tx = SplitDriver(memory, 64), SplitDriver(memory, 64, at=BASE + 0x1_0000)
        for index, ring in enumerate((rx, tx)):
            assert driver.set_queue(index, 64, ring.areas)
        driver.add_status(status.DRIVER_OK)
        rx.add(Buffer(BUFFERS, 2000, writable=True))
        driver.store("QueueNotify", 0)
        subprocess.run(["ip", "link", "del", "pyvmm7"], check=True)
        tx.add(Buffer(BUFFERS + 2000, 100))
        driver.store("QueueNotify", 1)
        assert wait(lambda: bool(tx.used()))
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.1
        driver.store("Status", 0)
        assert driver.load("Status") == 0
    assert "virtio-needs-reset" not in events.names()
    memory.close()
