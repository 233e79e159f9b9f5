"""The block device: requests from a ring to a file, in threads of its own."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.recorded import Recorded
from tests.virtio.block.blk_driver import (
    DATA,
    DISCARD,
    FLUSH,
    GET_ID,
    HEADER,
    IN,
    IOERR,
    OK,
    OUT,
    SECTORS,
    STATUS,
    UNMAP,
    UNSUPP,
    WRITE_ZEROES,
    Disk,
    wait,
)
from tests.virtio.ring_driver import BASE, KINDS, SECOND, Buffer, Memory, SplitDriver
from vmm._native import ffi
from vmm.config.disk import DiskConfig
from vmm.errors import UserError
from vmm.fd import EventFd
from vmm.virtio import status
from vmm.virtio.block import device
from vmm.virtio.block import registers as blk
from vmm.virtio.block.device import Blk
from vmm.virtio.block.image_format import image_format
from vmm.virtio.block.raw_image import RawDisk
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport


@pytest.fixture
def disk(make: Callable[..., Disk]) -> Disk:
    disk = make(serial="PYVMM-0001")
    disk.start()
    return disk


# --- a raw image that must not look like another format -----------------------------------------

HEADERS = {
    "qcow2": b"QFI\xfb".ljust(512, b"\1"),
    "vmdk": b"KDMV".ljust(512, b"\1"),
    "vhdx": b"vhdxfile".ljust(512, b"\1"),
    "vhd": b"conectix".ljust(512, b"\1"),
}


@pytest.fixture
def guessed(make: Callable[..., Disk]) -> Disk:
    disk = make(guessed=True)
    disk.start()
    return disk


@pytest.mark.parametrize("name", HEADERS)
def test_a_guest_cannot_make_a_guessed_disk_another_format(
    guessed: Disk, events: Recorded, name: str
) -> None:
    before = guessed.path.read_bytes()
    for data in (HEADERS[name], HEADERS[name] + bytes(7 * 512)):
        assert guessed.write(0, data) == IOERR
        assert guessed.path.read_bytes() == before
    assert image_format(DiskConfig(guessed.path)) == "raw"
    guessed.transport.reset()
    ((event, fields),) = events.seen
    assert event == "disk-format-refused"
    assert fields == {
        "device": "disk0",
        "queue": 0,
        "remedy": f"--disk {guessed.path},format=raw",
    }


def test_a_header_in_many_buffers_is_seen(guessed: Disk) -> None:
    before = guessed.path.read_bytes()
    data = HEADERS["qcow2"]
    guessed.memory.guest.write(SECOND, data)
    parts = [Buffer(SECOND + at, 1) for at in range(9)] + [Buffer(SECOND + 9, 503)]
    assert guessed.request(OUT, 0, *parts) == IOERR
    assert guessed.path.read_bytes() == before
    guessed.memory.pack(DATA, "IIQ", OUT, 0, 0)
    guessed.memory.guest.write(DATA + 16, data[:3])
    guessed.memory.guest.write(STATUS, b"\xff")
    guessed.send(Buffer(DATA, 19), Buffer(SECOND + 3, 509), Buffer(STATUS, 1, writable=True))
    assert guessed.status() == IOERR
    assert guessed.path.read_bytes() == before


def test_a_guessed_disk_takes_everything_else(guessed: Disk, events: Recorded) -> None:
    """A header that is elsewhere, or incomplete, is data."""
    header = HEADERS["qcow2"]
    for sector, data in (
        (1, header),
        (0, b"\0" + header[:511]),
        (0, header[:3] + bytes(509)),
        (0, os.urandom(1) * 4096),
        (3, os.urandom(4096)),
    ):
        assert guessed.write(sector, data) == OK
        at = sector * 512
        assert guessed.path.read_bytes()[at : at + len(data)] == data
    assert guessed.ranges(WRITE_ZEROES, (0, 8, 0)) == OK
    assert guessed.path.read_bytes()[:512] == bytes(512)
    guessed.transport.reset()
    assert events.seen == []


def test_a_guest_cannot_change_a_header_after_it_was_seen(guessed: Disk) -> None:
    """What was looked at is what is written: the buffer belongs to the guest, which is writing."""
    stop = Event()
    magic = b"QFI\xfb"

    def flip() -> None:
        while not stop.is_set():
            guessed.memory.guest.write(SECOND, magic)
            guessed.memory.guest.write(SECOND, b"RAW\0")

    guest = Thread(target=flip)
    guest.start()
    try:
        for _ in range(300):
            guessed.request(OUT, 0, Buffer(SECOND, 512))
            assert not guessed.path.read_bytes().startswith(magic)
    finally:
        stop.set()
        guest.join()


def test_a_failure_on_a_slot_that_was_refused_is_a_failure(guessed: Disk, events: Recorded) -> None:
    for data in (HEADERS["vmdk"], HEADERS["vhd"]):
        assert guessed.write(0, data) == IOERR
    assert isinstance(guessed.transport.device, Blk)
    guessed.transport.device.tell_failures()
    os.truncate(guessed.path, 512)
    assert guessed.request(IN, 4, Buffer(DATA, 512, writable=True)) == IOERR
    guessed.transport.reset()
    assert events.names() == ["disk-format-refused", "disk-error"]


def test_a_disk_that_is_said_to_be_raw_takes_any_header(disk: Disk) -> None:
    assert disk.write(0, HEADERS["qcow2"]) == OK
    assert disk.path.read_bytes()[:512] == HEADERS["qcow2"]


def test_a_write_that_fails_after_its_header_was_seen_is_an_error(guessed: Disk) -> None:
    fd = os.open(guessed.path, os.O_RDONLY)  # which cannot be written
    found = guessed.transport.device
    assert isinstance(found, Blk)
    found.disk.fd = fd
    assert guessed.write(0, bytes(512)) == IOERR
    os.close(fd)


# --- requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_and_on_the_file(make: Callable[..., Disk], kind: str) -> None:
    disk = make()
    disk.start(kind)
    assert disk.driver.load("DeviceID") == 2
    for sector in range(50):
        assert disk.read(sector, 1024) == bytes([sector]) * 512 + bytes([sector + 1]) * 512
        assert disk.write(sector, os.urandom(8) * 64) == OK
    assert disk.request(FLUSH, 0) == OK
    assert disk.read(0, 512 * 50) == disk.path.read_bytes()[: 512 * 50]
    assert disk.driver.load("InterruptStatus") == 1


def test_data_may_be_in_many_buffers_and_anyhow_beside_the_header(disk: Disk) -> None:
    data = os.urandom(1024)
    disk.memory.pack(DATA, "IIQ", OUT, 0, 7)
    disk.memory.guest.write(DATA + 16, data[:100])
    disk.memory.guest.write(SECOND, data[100:])
    disk.send(
        Buffer(DATA, 3),
        Buffer(DATA + 3, 50),
        Buffer(DATA + 53, 63),
        Buffer(SECOND, 924),
        Buffer(STATUS, 1, writable=True),
    )
    assert disk.path.read_bytes()[7 * 512 : 9 * 512] == data
    disk.memory.pack(DATA, "IIQ", IN, 0, 7)
    parts = [Buffer(SECOND, 1, writable=True), Buffer(SECOND + 10, 1024, writable=True)]
    assert disk.send(Buffer(DATA, 16), *parts) == 1025
    read = disk.memory.guest.read(SECOND, 1) + disk.memory.guest.read(SECOND + 10, 1024)
    assert read == data + b"\0", "the last byte is the status"


def test_a_disk_has_its_size_and_limits(disk: Disk) -> None:
    load = disk.driver.transport.read
    assert load(0x100, 8) == SECTORS
    assert load(0x100 + 12, 4) == 254
    assert load(0x100 + 20, 4) == 512
    assert load(0x100 + 34, 2) == 1


def test_a_disk_has_a_serial_number(disk: Disk) -> None:
    assert disk.request(GET_ID, 0, Buffer(DATA, 20, writable=True)) == OK
    assert disk.memory.guest.read(DATA, 20) == b"PYVMM-0001".ljust(20, b"\0")


@pytest.mark.parametrize(
    ("sector", "size"),
    [(SECTORS, 512), (SECTORS - 1, 1024), (1 << 63, 512), ((1 << 64) - 1, 1024), (0, 100)],
)
@pytest.mark.parametrize("kind", [IN, OUT])
def test_what_is_not_on_the_disk_is_an_error(disk: Disk, kind: int, sector: int, size: int) -> None:
    before = disk.path.read_bytes()
    disk.memory.guest.write(DATA, b"\xee" * size)
    assert disk.request(kind, sector, Buffer(DATA, size, writable=kind == IN)) == IOERR
    assert disk.path.read_bytes() == before
    assert disk.memory.guest.read(DATA, size) == (b"\0" if kind == IN else b"\xee") * size


def test_a_file_that_shrinks_is_an_io_error_and_not_the_end(disk: Disk) -> None:
    os.truncate(disk.path, 512)
    assert disk.request(IN, 0, Buffer(DATA, 1024, writable=True)) == IOERR
    assert disk.memory.guest.read(DATA, 1024) == bytes(1024)
    assert disk.read(0, 512) == bytes(512)


@pytest.mark.parametrize("kind", [2, 3, 5, 14, 0x8000_0000, 0xFFFF_FFFF])
def test_what_is_not_known_is_not_supported(disk: Disk, kind: int) -> None:
    assert disk.request(kind, 0, Buffer(DATA, 512, writable=True)) == UNSUPP


def test_zeroes_and_holes_can_be_made(disk: Disk) -> None:
    expected = bytearray(disk.path.read_bytes())
    assert disk.ranges(WRITE_ZEROES, (10, 3, 0)) == OK
    assert disk.ranges(WRITE_ZEROES, (20, 100, UNMAP)) == OK
    for first, count in ((10, 3), (20, 100)):
        expected[first * 512 : (first + count) * 512] = bytes(count * 512)
    assert disk.path.read_bytes() == expected
    assert disk.ranges(DISCARD, (128, 64, 0)) == OK
    assert len(disk.path.read_bytes()) == SECTORS * 512


@pytest.mark.parametrize(
    ("kind", "ranges", "status"),
    [
        (DISCARD, [(0, 1, UNMAP)], UNSUPP),
        (DISCARD, [(0, 1, 2)], UNSUPP),
        (WRITE_ZEROES, [(0, 1, 0x8000_0000)], UNSUPP),
        (WRITE_ZEROES, [(SECTORS, 1, 0)], IOERR),
        (WRITE_ZEROES, [((1 << 64) - 1, 1, 0)], IOERR),
        (DISCARD, [(0, 0xFFFF_FFFF, 0)], IOERR),
        (DISCARD, [(0, 1, 0)] * 33, IOERR),
        (DISCARD, [(0, 0, 0)] * 32, OK),
        (WRITE_ZEROES, [(0, 1, 0)] * 2, IOERR),
        (DISCARD, [(0, 0, 0)], OK),
    ],
)
def test_ranges_are_checked(
    disk: Disk, kind: int, ranges: list[tuple[int, int, int]], status: int
) -> None:
    before = disk.path.read_bytes()
    assert disk.ranges(kind, *ranges) == status
    assert disk.path.read_bytes() == before


def test_the_driver_is_told_the_limits(disk: Disk) -> None:
    size = ffi.sizeof("struct virtio_blk_config")
    found = ffi.new("struct virtio_blk_config *")
    ffi.memmove(found, disk.transport.device.config(), size)
    assert found.max_discard_seg == 32
    assert found.max_write_zeroes_seg == 1
    assert found.max_write_zeroes_sectors == (64 << 20) // 512


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_range_of_zeroes_has_a_limit(disk: Disk, beyond: int) -> None:
    """Even where the disk has more sectors."""
    found = disk.transport.device
    assert isinstance(found, Blk)
    found.disk.sectors = 1 << 40
    os.truncate(disk.path, 65 << 20)
    most = (64 << 20) // 512 + beyond
    assert disk.ranges(WRITE_ZEROES, (0, most, UNMAP)) == (IOERR if beyond else OK)


@pytest.mark.parametrize("sector", [0, 1, 7])
def test_a_long_range_is_cleared_to_its_end(disk: Disk, sector: int) -> None:
    found = disk.transport.device
    assert isinstance(found, Blk)
    size = 40 << 20
    disk.path.write_bytes(b"\xee" * size)
    found.disk.sectors = size // 512
    count = size // 512 - sector - 3
    assert disk.ranges(WRITE_ZEROES, (sector, count, 0)) == OK
    start = sector * 512
    expected = b"\xee" * start + bytes(count * 512) + b"\xee" * 3 * 512
    assert disk.path.read_bytes() == expected


def test_a_read_only_disk_stays_as_it_is(make: Callable[..., Disk]) -> None:
    disk = make(read_only=True)
    disk.start()
    assert disk.driver.offered() & blk.F_RO
    assert not disk.driver.offered() & (blk.F_DISCARD | blk.F_WRITE_ZEROES)
    before = disk.path.read_bytes()
    assert disk.write(0, bytes(512)) == IOERR
    assert disk.ranges(WRITE_ZEROES, (0, 1, 0)) == IOERR
    assert disk.ranges(DISCARD, (0, 1, 0)) == IOERR
    assert disk.path.read_bytes() == before
    assert disk.read(3, 512) == b"\3" * 512


def test_without_flush_each_write_is_durable(make: Callable[..., Disk]) -> None:
    disk = make()
    disk.start(features=0)
    device = disk.driver.transport.device
    assert isinstance(device, Blk)
    assert device.disk.write_through
    assert disk.write(1, b"x" * 512) == OK
    assert disk.ranges(WRITE_ZEROES, (2, 1, 0)) == OK


# --- queues and their threads ---------------------------------------------------------------------


def test_each_queue_is_served_by_itself(make: Callable[..., Disk], memory: Memory) -> None:
    disk = make(queues=3)
    driver = disk.driver
    assert driver.transport.read(0x100 + 34, 2) == 3
    rings = [SplitDriver(memory, at=BASE + 0x1_0000 * index) for index in (0, 1, 8)]
    driver.negotiate(blk.F_MQ | blk.F_FLUSH)
    for index, ring in enumerate(rings):
        driver.set_queue(index, ring.size, ring.areas)
    driver.add_status(status.DRIVER_OK)
    memory.pack(HEADER, "IIQ", IN, 0, 5)
    for index, ring in enumerate(rings):
        at = DATA + 0x400 * index
        ring.add(Buffer(HEADER, 16), Buffer(at, 513, writable=True))
        driver.store("QueueNotify", index)
    for index, ring in enumerate(rings):
        wait(ring.used)
        assert memory.guest.read(DATA + 0x400 * index, 513) == b"\5" * 512 + b"\0"


def test_many_requests_at_once_are_all_done(disk: Disk) -> None:
    ring = disk.ring
    for turn in range(200):
        for slot in range(4):
            disk.memory.pack(HEADER + 32 * slot, "IIQ", IN, 0, slot + turn % 16)
            ring.add(Buffer(HEADER + 32 * slot, 16), Buffer(DATA + 1024 * slot, 513, writable=True))
        disk.driver.store("QueueNotify", 0)
        remaining = 4

        def all_done() -> bool:
            nonlocal remaining
            remaining -= len(ring.used())
            return remaining == 0

        wait(all_done)
        for slot in range(4):
            expected = bytes([slot + turn % 16]) * 512 + b"\0"
            assert disk.memory.guest.read(DATA + 1024 * slot, 513) == expected


def test_a_reset_ends_the_threads_and_a_start_begins_new_ones(disk: Disk) -> None:
    for _ in range(20):
        assert disk.read(1, 512) == b"\1" * 512
        disk.driver.store("QueueNotify", 0)
        disk.driver.transport.reset()
        device = disk.driver.transport.device
        assert isinstance(device, Blk)
        assert device._workers == {}
        disk.start()


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_ring_needs_a_reset(make: Callable[..., Disk], events: Recorded, kind: str) -> None:
    disk = make(queues=2)
    for _ in range(5):
        events.seen.clear()
        disk.start(kind)
        disk.ring.add(Buffer(0, 16), Buffer(STATUS, 1, writable=True))
        disk.driver.store("QueueNotify", 0)
        wait(lambda: disk.driver.load("Status") & status.NEEDS_RESET)
        wait(lambda: events.seen)
        assert events.names() == ["virtio-needs-reset"]
        assert disk.driver.load("InterruptStatus") & 2
    disk.start(kind)
    assert disk.read(1, 512) == b"\1" * 512


@pytest.mark.parametrize(
    "buffers",
    [
        [Buffer(HEADER, 16)],
        [Buffer(HEADER, 15), Buffer(STATUS, 1, writable=True)],
        [Buffer(STATUS, 1, writable=True)],
    ],
)
def test_a_request_has_a_header_and_a_status(
    disk: Disk, events: Recorded, buffers: list[Buffer]
) -> None:
    disk.ring.add(*buffers)
    disk.driver.store("QueueNotify", 0)
    wait(lambda: events.seen)
    assert "too short" in str(events.seen[0][1]["error"])


def test_a_host_that_is_out_of_descriptors_breaks_a_disk_and_no_more(
    make: Callable[..., Disk], events: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> EventFd:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    disk = make()
    with monkeypatch.context() as patch:
        patch.setattr(device, "EventFd", fail)
        disk.start()
    assert disk.driver.load("Status") & status.NEEDS_RESET
    ((name, fields),) = events.seen
    assert name == "virtio-needs-reset"
    assert fields["error"] == "disk0: Too many open files"
    disk.start()
    assert disk.read(1, 512) == b"\1" * 512


def test_a_reset_while_a_ring_goes_bad_does_not_hang(disk: Disk) -> None:
    for _ in range(100):
        disk.ring.add(Buffer(0, 16))
        disk.driver.store("QueueNotify", 0)
        disk.driver.transport.reset()
        disk.start()


def test_closing_leaves_no_file_open(memory: Memory, events: Recorded, path: Path) -> None:
    def open_files() -> set[str]:
        return {entry.name for entry in Path("/proc/self/fd").iterdir()}

    before = open_files()
    backing = RawDisk(path, read_only=False, option="--disk")
    with MmioTransport(Blk("disk0", MemoryMap(memory.guest), events, backing)) as transport:
        disk = Disk(transport, memory, path)
        disk.start()
        disk.read(0, 512)
    transport.close()
    assert open_files() == before


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "0 bytes are not one or more sectors"),
        (bytes(513), "513 bytes"),
    ],
)
def test_what_is_no_raw_image_is_refused(path: Path, content: bytes, complaint: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=complaint) as caught:
        RawDisk(path, read_only=False, option=f"--disk {path}")
    assert str(caught.value).startswith(f"--disk {path}: ")
    assert caught.value.hint


def test_a_missing_image_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        RawDisk(tmp_path / "none", read_only=False, option="--disk")
    with pytest.raises(UserError, match="neither a file"):
        RawDisk(tmp_path, read_only=True, option="--disk")


def test_two_machines_cannot_write_one_image(path: Path) -> None:
    with RawDisk(path, read_only=False, option="--disk"):
        for read_only in (False, True):
            with pytest.raises(UserError, match="another machine uses it"):
                RawDisk(path, read_only=read_only, option="--disk")
    with (
        RawDisk(path, read_only=True, option="--disk"),
        RawDisk(path, read_only=True, option="--disk"),
    ):
        pass


# --- pause ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_paused_disk_serves_nothing_and_goes_on_where_it_was(
    make: Callable[..., Disk], kind: str
) -> None:
    disk = make()
    disk.start(kind)
    for number in range(20):
        assert disk.write(number, bytes([number]) * 512) == OK
        disk.transport.device.pause()
        disk.transport.device.pause()
        disk.add(IN, number, Buffer(DATA + 0x1000, 512, writable=True))
        disk.notify()
        time.sleep(0.01)
        assert not list(disk.ring.used()), "the thread served a paused queue"
        disk.transport.device.resume()
        disk.used(1)
        assert disk.memory.guest.read(DATA + 0x1000, 512) == bytes([number]) * 512


def test_a_paused_disk_can_be_reset(disk: Disk) -> None:
    disk.transport.device.pause()
    disk.driver.store("Status", 0)
    disk.transport.device.resume()
    disk.start()
    assert disk.write(1, b"x" * 512) == OK
