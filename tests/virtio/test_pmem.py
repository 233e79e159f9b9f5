"""Persistent memory: the file, and the device that makes it durable."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.recorded import Recorded
from tests.virtio.driver import FORMAT_FEATURES
from tests.virtio.mmio_driver import MmioDriver
from tests.virtio.ring_driver import (
    BASE,
    BUFFERS,
    KINDS,
    SECOND,
    Buffer,
    Memory,
    PackedDriver,
    SplitDriver,
)
from vmm import sigbus
from vmm.config.pmem import PmemConfig, parse_pmem
from vmm.errors import HostError, UserError
from vmm.memory import Backing
from vmm.sigbus import LostError
from vmm.virtio import pmem_file, status
from vmm.virtio.pmem import Pmem
from vmm.virtio.pmem_file import ALIGNMENT, PmemFile
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport

FLUSH, PATIENCE = 0, 10.0


class Disk:
    """A backing that counts its syncs, each of which lasts until it is allowed to end."""

    base, size = 0x8000_0000, 4 << 20

    def __init__(self) -> None:
        self.synced = 0
        self.error = 0
        self.go = threading.Event()
        self.go.set()

    def sync(self) -> None:
        assert self.go.wait(PATIENCE)
        self.synced += 1
        if self.error:
            raise OSError(self.error, "")


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def driver(memory: Memory, events: Recorded, disk: Disk) -> Iterator[MmioDriver]:
    with MmioTransport(Pmem("pmem0", MemoryMap(memory.guest), events, disk)) as transport:
        yield MmioDriver(transport)
        disk.go.set()


@pytest.fixture(params=KINDS)
def ring(request: pytest.FixtureRequest, memory: Memory) -> SplitDriver | PackedDriver:
    return KINDS[request.param](memory)


def start(driver: MmioDriver, ring: SplitDriver | PackedDriver) -> None:
    driver.start(ring.size, ring.areas, FORMAT_FEATURES[ring.form])


def flush(
    driver: MmioDriver, ring: SplitDriver | PackedDriver, number: int = 0, kind: int = FLUSH
) -> int:
    """Make a flush request; return the chain's id. The reply will be at SECOND."""
    memory, reply = ring.memory, SECOND + 4 * number
    memory.pack(BUFFERS, "I", kind)
    memory.pack(reply, "I", 0xFFFF_FFFF)
    identity = ring.add(Buffer(BUFFERS, 4), Buffer(reply, 4, writable=True), indirect=True)
    driver.notify()
    return identity


def wait(until: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def used(ring: SplitDriver | PackedDriver, count: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []

    def enough() -> bool:
        found.extend(ring.used())
        return len(found) >= count

    wait(enough)
    return found


# --- the device ---------------------------------------------------------------------------------


def test_it_says_where_it_is(driver: MmioDriver, disk: Disk) -> None:
    assert driver.load("DeviceID") == 27
    low, high = (driver.transport.read(0x100 + at, 4) for at in (0, 4))
    assert low | high << 32 == disk.base
    assert driver.transport.read(0x108, 8) == disk.size


def test_a_flush_is_done_when_it_is_used(
    driver: MmioDriver, ring: SplitDriver | PackedDriver, disk: Disk
) -> None:
    start(driver, ring)
    for count in range(1, 6):
        disk.go.clear()
        identity = flush(driver, ring)
        time.sleep(0.002)
        assert ring.used() == []
        disk.go.set()
        assert used(ring, 1) == [(identity, 4)]
        assert ring.memory.unpack(SECOND, "I") == (0,)
        assert disk.synced == count
        wait(driver.interrupts)


def test_flushes_that_wait_are_done_together(
    driver: MmioDriver, memory: Memory, disk: Disk
) -> None:
    """Not with a sync that has begun: what was written since may not be part of it."""
    ring = SplitDriver(memory)
    start(driver, ring)
    disk.go.clear()
    ids = [flush(driver, ring)]
    time.sleep(0.02)
    ids += [flush(driver, ring, number) for number in range(1, 5)]
    disk.go.set()
    assert sorted(used(ring, 5)) == sorted((each, 4) for each in ids)
    assert disk.synced == 2


def test_a_disk_that_fails_is_told_of(
    driver: MmioDriver, ring: SplitDriver | PackedDriver, disk: Disk, events: Recorded
) -> None:
    start(driver, ring)
    disk.error = errno.EIO
    flush(driver, ring)
    used(ring, 1)
    assert ring.memory.unpack(SECOND, "I") == (1,)
    assert events.seen == [
        ("pmem-sync-failed", {"device": "pmem0", "error": os.strerror(errno.EIO)})
    ]
    assert not driver.load("Status") & status.NEEDS_RESET


def test_another_request_fails(
    driver: MmioDriver, ring: SplitDriver | PackedDriver, disk: Disk
) -> None:
    start(driver, ring)
    flush(driver, ring, kind=7)
    assert len(ring.used()) == 1
    assert ring.memory.unpack(SECOND, "I") == (1,)
    assert disk.synced == 0


@pytest.mark.parametrize(
    "buffers",
    [
        [Buffer(BUFFERS, 4)],
        [Buffer(BUFFERS, 3), Buffer(SECOND, 4, writable=True)],
        [Buffer(BUFFERS, 4), Buffer(SECOND, 3, writable=True)],
        [Buffer(BUFFERS + n, 1) for n in range(8)] + [Buffer(SECOND, 4, writable=True)],
    ],
)
def test_what_is_no_request_needs_a_reset(
    driver: MmioDriver, memory: Memory, events: Recorded, buffers: list[Buffer]
) -> None:
    ring = SplitDriver(memory, 16)
    start(driver, ring)
    ring.add(*buffers)
    driver.notify()
    assert driver.load("Status") & status.NEEDS_RESET
    assert events.names() == ["virtio-needs-reset"]


def test_a_reset_waits_for_nothing_and_nothing_comes_after_it(
    driver: MmioDriver, memory: Memory, disk: Disk
) -> None:
    ring = SplitDriver(memory)
    for _ in range(3):
        start(driver, ring)
        disk.go.clear()
        flush(driver, ring)
        time.sleep(0.005)
        driver.store("Status", 0)
        memory.guest.write(BASE, bytes(0x1_0000))
        synced = disk.synced
        disk.go.set()
        wait(lambda: disk.synced > synced)  # noqa: B023
        time.sleep(0.005)
        ring = SplitDriver(memory)
        assert ring.used() == []
        assert memory.unpack(SECOND, "I") == (0xFFFF_FFFF,)


# --- the file -----------------------------------------------------------------------------------


def test_what_is_written_to_memory_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pmem"
    with PmemFile(PmemConfig(path, size=2 * ALIGNMENT)) as file:
        file.base = 1 << 40
        region = file.region()
        assert (region.base, region.size, region.backing) == (1 << 40, 4 << 20, Backing.FILE)
        region.view[5:8] = b"abc"
        file.sync()
        assert path.read_bytes()[5:8] == b"abc"
        os.pwrite(region.fd, b"xyz", 0)
        assert bytes(region.view[:8]) == b"xyz\0\0abc"
    assert path.stat().st_size == 4 << 20


def test_a_file_has_its_blocks_before_it_is_used(tmp_path: Path) -> None:
    """A store to a hole of a full file system would be a SIGBUS."""
    new, sparse, read = (tmp_path / name for name in ("new", "sparse", "read"))
    for path in (sparse, read):
        with path.open("wb") as file:
            file.write(b"abc")
            file.truncate(ALIGNMENT)
    with PmemFile(PmemConfig(new, size=ALIGNMENT)) as made, PmemFile(PmemConfig(sparse)) as found:
        assert made.allocated
        assert found.allocated
        for path in (new, sparse):
            assert path.stat().st_blocks * 512 >= ALIGNMENT
        assert sparse.read_bytes() == b"abc".ljust(ALIGNMENT, b"\0")
    with PmemFile(PmemConfig(read, read_only=True)):
        assert read.stat().st_blocks * 512 < ALIGNMENT


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """Return a path on a tmpfs with a limit, which refuses more than that at once."""
    root = Path("/dev/shm")
    if not root.is_mount() or os.statvfs(root).f_blocks == 0:
        pytest.skip("/dev/shm is no tmpfs with a limit")
    path = root / f"pyvmm-pmem-{os.getpid()}"
    yield path
    path.unlink(missing_ok=True)


def test_a_full_file_system_is_one_clear_error(in_memory: Path) -> None:
    about = os.statvfs(in_memory.parent)
    size = (about.f_blocks * about.f_frsize // ALIGNMENT + 1) * ALIGNMENT
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(HostError, match=f"--pmem {in_memory}: cannot allocate .*No space left"):
        PmemFile(PmemConfig(in_memory, size=size))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert (in_memory.stat().st_size, in_memory.stat().st_blocks) == (0, 0)


def test_a_file_system_that_cannot_allocate_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = SimpleNamespace(pyvmm_allocate=lambda _fd, _size: -errno.EOPNOTSUPP)
    monkeypatch.setattr(pmem_file, "lib", refusing)
    sparse, full = tmp_path / "sparse", tmp_path / "full"
    full.write_bytes(b"a" * ALIGNMENT)
    with PmemFile(PmemConfig(sparse, size=ALIGNMENT)) as file:
        assert not file.allocated
    with PmemFile(PmemConfig(full)) as file:
        assert file.allocated, "it has no holes"


def test_a_file_that_is_cut_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "pmem"
    for read_only in (False, True):
        path.write_bytes(b"a" * ALIGNMENT)
        with PmemFile(PmemConfig(path, read_only=read_only)) as file:
            assert file.loss() is None
            os.truncate(path, 4096)
            found = file.loss()
            assert found is not None
            assert found.offset == 4096
            assert file.region().view[ALIGNMENT - 1] == 0
            with pytest.raises(LostError, match=f"--pmem {path}: "):
                sigbus.check()
        sigbus.check()


def test_what_is_read_only_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "pmem"
    path.write_bytes(b"a" * ALIGNMENT)
    path.chmod(0o400)
    with PmemFile(PmemConfig(path, read_only=True)) as file:
        region = file.region()
        assert region.read_only
        assert region.fd == -1, "nobody else shall map it"
        region.view[0] = 1  # a device may be told to, by a guest
        file.sync()
    assert set(path.read_bytes()) == {ord("a")}


def test_a_lab_host_writes_the_file_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has two names there; this process's own machine needs no such end."""
    path = tmp_path / "pmem"
    path.write_bytes(bytes(ALIGNMENT))
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    PmemFile(PmemConfig(path)).close()
    PmemFile(PmemConfig(path, read_only=True, mapped=path)).close()
    assert not synced
    file = PmemFile(PmemConfig(Path("the user's"), mapped=path))
    file.close()
    file.close()
    assert len(synced) == 1


def test_a_lab_host_says_what_it_could_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pmem"
    path.write_bytes(bytes(ALIGNMENT))

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", full)
    file = PmemFile(PmemConfig(Path("memory"), mapped=path))
    with pytest.raises(HostError, match=r"^--pmem memory: not all .* it: No space left on device"):
        file.close()
    with pytest.raises(ValueError, match="released"):
        file.region().view[0]
    PmemFile(PmemConfig(path)).close()  # it is not locked any more


def test_part_of_a_file_will_do(tmp_path: Path) -> None:
    path = tmp_path / "pmem"
    path.write_bytes(bytes(ALIGNMENT + 100))
    with PmemFile(PmemConfig(path, size=ALIGNMENT)) as file:
        assert file.size == ALIGNMENT
    assert path.stat().st_size == ALIGNMENT + 100


def test_one_machine_at_a_time_may_write(tmp_path: Path) -> None:
    path = tmp_path / "pmem"
    path.write_bytes(bytes(ALIGNMENT))
    with (
        PmemFile(PmemConfig(path)),
        pytest.raises(UserError, match=r"--pmem .*: another machine uses it"),
    ):
        PmemFile(PmemConfig(path))
    with PmemFile(PmemConfig(path, read_only=True)), PmemFile(PmemConfig(path, read_only=True)):
        pass


@pytest.mark.parametrize(
    ("content", "config", "message"),
    [
        (None, {}, "No such file or directory; .*size=SIZE"),
        (None, {"size": ALIGNMENT, "read_only": True}, "No such file"),
        (0, {}, "0 bytes are not"),
        (100, {}, "100 bytes are not one or more times 2 MiB; .*truncate -s %2M"),
        (100, {"size": 100 << 10}, "102400 bytes are not"),
        (ALIGNMENT, {"size": 2 * ALIGNMENT, "read_only": True}, "more"),
    ],
)
def test_files_that_will_not_do(
    tmp_path: Path, content: int | None, config: dict[str, int], message: str
) -> None:
    path = tmp_path / "pmem"
    if content is not None:
        path.write_bytes(bytes(content))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(UserError, match=f"^--pmem {path}: .*{message}"):
        PmemFile(PmemConfig(path, **config))  # type: ignore[arg-type]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert (path.stat().st_size if path.exists() else None) == content


def test_no_directory_or_device_will_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--pmem /dev/null: neither a file nor"):
        PmemFile(PmemConfig(Path("/dev/null")))
    with pytest.raises(UserError, match="Is a directory"):
        PmemFile(PmemConfig(tmp_path))


def test_options() -> None:
    assert parse_pmem("/x") == PmemConfig(Path("/x"))
    assert parse_pmem("a,ro,size=1G") == PmemConfig(Path("a"), read_only=True, size=1 << 30)
    for text in ("", ",ro", "x,rw", "x,size=", "x,size=y", "x,"):
        with pytest.raises(UserError, match="--pmem"):
            parse_pmem(text)


@pytest.mark.parametrize(("told", "is_dax"), [(1, True), (0, False), (-1, None)])
def test_whether_a_file_is_on_dax_may_be_unknown(
    told: int,
    is_dax: bool | None,  # noqa: FBT001  (a parameter of the test)
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with PmemFile(PmemConfig(tmp_path / "file", size=ALIGNMENT)) as file:
        assert file.is_dax is False
        monkeypatch.setattr(pmem_file, "lib", SimpleNamespace(pyvmm_is_dax=lambda _fd: told))
        assert file.is_dax is is_dax


def test_a_pause_waits_for_the_flush_under_way_and_begins_no_other(
    driver: MmioDriver, ring: SplitDriver | PackedDriver, disk: Disk
) -> None:
    start(driver, ring)
    disk.go.clear()
    flush(driver, ring)
    device = driver.transport.device
    pausing = threading.Thread(target=device.pause)
    pausing.start()
    pausing.join(0.2)
    assert pausing.is_alive(), "the flush is under way"
    disk.go.set()
    pausing.join(PATIENCE)
    assert not pausing.is_alive()
    assert len(used(ring, 1)) == 1
    flush(driver, ring, 1)
    time.sleep(0.1)
    assert disk.synced == 1
    device.resume()
    device.process(0)  # as the loop does: its doorbell was signalled
    assert len(used(ring, 1)) == 1
    assert disk.synced == 2
