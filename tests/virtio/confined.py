"""Use a disk and a daemon in a process that is confined; print what was denied, as JSON.

    confined.py IMAGE

IMAGE0 and IMAGE1 are raw. A disk is read, written, flushed, discarded, reset and used again, each
way; the daemon is ended and started again: what a guest makes a machine do while it runs. Prints
``[[], []]``: nothing was denied, and no module imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.recorded import Recorded
from tests.virtio.block.blk_driver import Disk
from tests.virtio.ring_driver import Memory
from vmm import sandbox, thread
from vmm.broker import Broker
from vmm.machine.seal import seal
from vmm.virtio.block.device import Blk
from vmm.virtio.block.raw_image import RawDisk
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport
from vmm.virtio.vhost.daemon import Command, Daemon

DISCARD, WRITE_ZEROES, FLUSH = 11, 13, 4
WAYS = ("io_uring", "one by one")


def use(disk: Disk) -> None:
    """Do each kind of request, and be reset."""
    for _ in range(3):
        disk.start()
        assert disk.write(3, b"x" * 512) == 0
        assert disk.read(3, 512) == b"x" * 512
        assert disk.request(FLUSH, 0) == 0
        disk.ranges(DISCARD, (8, 8, 0))
        disk.ranges(WRITE_ZEROES, (16, 8, 0))
        disk.transport.reset()


def main(image: str) -> None:
    """Do all of it."""
    seal()
    events, memory = Recorded(), Memory()
    with Broker() as broker:
        command = Command(["/bin/sh", "-c", "echo said >&2; sleep 1000"], broker)
        disks = []
        for number, way in enumerate(WAYS):
            backing = RawDisk(Path(f"{image}{number}"), read_only=False, option="--disk")
            device = Blk(way, MemoryMap(memory.guest), events, backing, queues=1)
            device.disk.one_by_one = way == "one by one"
            disks.append(Disk(MmioTransport(device), memory, Path(image)))
        sandbox.confine("log")
        before = {*sys.modules}
        broker.freeze()

        def as_vcpu() -> None:
            blocks = [bytes(64 << 10) for _ in range(64)]
            del blocks  # malloc gives its arena's end back
            for disk in disks:
                use(disk)
            for _ in range(2):
                with Daemon(command, events) as daemon:
                    assert not daemon.wait(0.2)

        vcpu = thread.start("vcpu", as_vcpu, kind=thread.VCPU)
        vcpu.join()
        for disk in disks:
            disk.transport.close()
        with Daemon(command, events) as daemon:
            assert not daemon.wait(0.2)
    denied = [[each.call, each.arguments[:4], each.thread] for each in sandbox.denials()]
    json.dump([denied, sorted({*sys.modules} - before)], sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
