"""Hostile requests of a disk against a model: the file, and each byte of guest memory.

Requests are cut into buffers anywhere, name any sector, and have any length. What they must not
change is compared as well as what they must.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio.block.blk_driver import (
    DISCARD,
    GET_ID,
    IN,
    IOERR,
    OK,
    WRITE_ZEROES,
    Disk,
    wait,
)
from tests.virtio.block.hostile_disk import MOST, ONE, SECTOR, WAYS, hostile
from tests.virtio.ring_driver import (
    BUFFERS,
    INDIRECT,
    NEXT,
    TABLES,
    Buffer,
    SplitDriver,
    gather,
)
from vmm._native import lib
from vmm.virtio import status
from vmm.virtio.block.device import Blk
from vmm.virtio.device import F_INDIRECT_DESC


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=12)
@given(seed=st.integers(0, ONE))
def test_each_request_does_what_it_says_and_nothing_else(way: str, seed: int) -> None:
    with hostile(seed, way) as made:
        for _ in range(40):
            made.do()


def test_a_disk_takes_more_requests_than_it_has_slots() -> None:
    with hostile(1, "io_uring") as made:
        for _ in range(3 * lib.PYVMM_BLK_DEPTH):
            made.do()


def test_a_file_that_was_cut_reads_as_an_error_and_zeroes() -> None:
    """The first part is there, the second is not: no byte of the guest's own passes for data."""
    for way in ("io_uring", "one by one"):
        with hostile(2, way) as made:
            os.truncate(made.path, 2 * SECTOR + 100)
            memory, disk = made.memory, made.disk
            disk.ring = made.ring
            memory.guest.write(BUFFERS + 0x1000, b"\xee" * 0x1000)
            parts = [Buffer(BUFFERS + 0x1000, 700, writable=True)]
            parts += [Buffer(BUFFERS + 0x1800, 4 * SECTOR - 700, writable=True)]
            assert disk.request(IN, 0, *parts) == IOERR
            found = memory.guest.read(BUFFERS + 0x1000, 700)
            found += memory.guest.read(BUFFERS + 0x1800, 4 * SECTOR - 700)
            assert found == bytes(made.file[: 2 * SECTOR + 100]).ljust(4 * SECTOR, b"\0")
            made.device.tell_failures()
            assert made.events.names() == ["disk-error"]
            made.requests = made.errors = 1


@pytest.mark.parametrize("way", ["one by one"], indirect=True)
@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_a_range_has_a_limit(make: Callable[..., Disk], path: Path, kind: int) -> None:
    most = MOST[kind].sectors
    os.truncate(path, (most + 8) * SECTOR)
    disk = make()
    disk.start()
    assert disk.ranges(kind, (0, most + 1, 0)) == IOERR
    assert disk.ranges(kind, (8, most + 1, 0)) == IOERR
    with path.open("rb") as file:
        assert file.read(16 * SECTOR) == b"".join(bytes([each]) * SECTOR for each in range(16))


@pytest.mark.parametrize("way", ["io_uring"], indirect=True)
def test_more_requests_wait_than_there_are_slots(make: Callable[..., Disk]) -> None:
    """All slots are taken by requests that the host does not finish; then it does."""
    disk = make()
    disk.driver.negotiate(F_INDIRECT_DESC)
    ring = SplitDriver(disk.memory, 256)
    disk.driver.set_queue(0, 256, ring.areas)
    disk.driver.add_status(status.DRIVER_OK)
    device = disk.transport.device
    assert isinstance(device, Blk)
    ends = os.pipe()
    file, device.disk.fd = device.disk.fd, ends[0]
    disk.memory.pack(BUFFERS, "IIQ", IN, 0, 0)
    count = lib.PYVMM_BLK_DEPTH + 12
    for index in range(count):
        table, place = TABLES + 32 * index, BUFFERS + 0x1000 + 513 * index
        ring.describe(table, 0, Buffer(BUFFERS, 16), NEXT, 1)
        ring.describe(table, 1, Buffer(place, 513, writable=True))
        disk.memory.guest.write(place + 512, b"\xff")
        number = ring.free.pop(0)
        ring.describe(ring.areas.descriptors, number, Buffer(table, 32), INDIRECT)
        ring.chains[number] = [number]
        ring.offer(number)
    disk.notify()
    queue = device.slots[0].queue
    assert queue is not None
    wait(lambda: queue.c.in_flight == lib.PYVMM_BLK_DEPTH)
    os.set_blocking(ends[1], True)
    data = bytes(range(256)) * 2
    done: list[tuple[int, int]] = []
    for _ in range(count):
        os.write(ends[1], data)
        done += ring.used()
    wait(lambda: len(gather(ring, done)) == count)
    assert len({identity for identity, _ in done}) == count
    device.disk.fd = file
    disk.transport.reset()
    for index in range(count):
        place = BUFFERS + 0x1000 + 513 * index
        assert disk.memory.guest.read(place + 512, 1) == bytes([OK])
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("way", ["io_uring", "one by one"], indirect=True)
def test_a_driver_that_notifies_only_when_asked_loses_nothing(make: Callable[..., Disk]) -> None:
    """It makes the next request at the moment when the last one is used."""
    disk = make()
    disk.start()
    disk.memory.pack(BUFFERS, "IIQ", GET_ID, 0, 0)
    for _ in range(3000):
        chain = Buffer(BUFFERS, 16), Buffer(BUFFERS + 32, 21, writable=True)
        disk.ring.add(*chain, indirect=True)
        if disk.ring.wants_notify():
            disk.notify()
        for _ in range(100_000):
            if disk.ring.used():
                break
        else:
            wait(disk.ring.used)
