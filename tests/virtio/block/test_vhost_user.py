"""Disk images served by the real qemu-storage-daemon, with a driver of ours."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from tests.recorded import Recorded
from tests.virtio.block.blk_driver import DATA, FLUSH, IN, OK, OUT, Disk, wait
from tests.virtio.ring_driver import BASE, BUFFERS, Buffer, Memory, SplitDriver
from tests.virtio.vhost import debian_daemons as foreign_programs
from vmm import broker
from vmm.config.disk import DiskConfig
from vmm.errors import HostError, UserError
from vmm.memory import Mapping
from vmm.virtio import status
from vmm.virtio.block.open import open_disk
from vmm.virtio.block.vhost_user import VhostUserBlk
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport
from vmm.virtio.vhost import daemon, user_device
from vmm.virtio.vhost.user import DaemonRefusedError

pytestmark = pytest.mark.timeout(300)

SIZE = 64 << 20
LEAKS = 3
"""Exit status of qemu-img check: no errors, but leaked clusters."""


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory(Mapping.memfd)
    yield memory
    memory.close()


@pytest.fixture(autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign_programs.install(tmp_path_factory.mktemp("bin"), monkeypatch)


def qemu_img(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.fixture
def path(tmp_path: Path) -> Path:
    qemu_img("create", "-f", "qcow2", tmp_path / "disk,1.qcow2", str(SIZE))
    return tmp_path / "disk,1.qcow2"


class Served(Disk):
    """A disk that a daemon serves, and the loop that listens for that."""

    def __init__(self, transport: MmioTransport, memory: Memory, path: Path) -> None:
        super().__init__(transport, memory, path)
        assert isinstance(transport.device, VhostUserBlk)
        self.device = transport.device

    @property
    def pid(self) -> int:
        return self.device.backend._server.pid  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def make(memory: Memory, events: Recorded) -> Iterator[Callable[..., Served]]:
    made: list[MmioTransport] = []

    def make(path: Path, **options: object) -> Served:
        config = DiskConfig(path, **options)  # type: ignore[arg-type]
        device = open_disk("disk0", config, MemoryMap(memory.guest), events)
        made.append(MmioTransport(device))
        return Served(made[-1], memory, path)

    yield make
    for transport in made:
        transport.close()


@pytest.fixture
def disk(make: Callable[..., Served], path: Path) -> Served:
    disk = make(path)
    disk.start()
    return disk


def content(path: Path, tmp_path: Path) -> bytes:
    qemu_img("convert", "-O", "raw", path, tmp_path / "converted")
    return (tmp_path / "converted").read_bytes()


def test_what_is_written_is_read_and_in_the_image(disk: Served, tmp_path: Path) -> None:
    assert disk.driver.load("DeviceID") == 2
    assert disk.driver.load("Config") == SIZE // 512
    written = {}
    for sector in random.sample(range(0, SIZE // 512, 8), 100):
        written[sector] = os.urandom(4096)
        assert disk.write(sector, written[sector]) == OK
    assert disk.request(FLUSH, 0) == OK
    for sector, data in written.items():
        assert disk.read(sector, 4096) == data
    disk.driver.transport.close()
    whole = content(disk.path, tmp_path)
    assert all(whole[512 * sector :][:4096] == data for sector, data in written.items())
    assert "No errors" in qemu_img("check", disk.path)


def test_a_new_driver_gets_a_new_daemon(disk: Served) -> None:
    assert disk.write(8, b"x" * 512) == OK
    pids = {disk.pid}
    for _ in range(3):
        disk.start()
        pids.add(disk.pid)
        assert disk.read(8, 512) == b"x" * 512
    assert len(pids) == 4


def test_a_read_only_image_is_so(make: Callable[..., Served], path: Path) -> None:
    path.chmod(0o400)
    disk = make(path, read_only=True)
    assert disk.driver.offered() & 1 << 5
    disk.start()
    assert disk.read(0, 512) == bytes(512)
    assert disk.write(0, bytes(512)) != OK


@pytest.mark.parametrize("name", ["vmdk", "vhdx", "vhd"])
def test_other_formats_are_served_if_they_are_named(
    make: Callable[..., Served], tmp_path: Path, name: str
) -> None:
    path = tmp_path / f"disk.{name}"
    qemu_img("create", "-f", {"vhd": "vpc"}.get(name, name), path, str(SIZE))
    with pytest.raises(UserError, match=f"looks like a {name} image.*format={name}"):
        make(path)
    disk = make(path, format=name)
    disk.start()
    assert disk.write(8, b"x" * 512) == OK
    assert disk.read(8, 512) == b"x" * 512


def test_an_image_with_a_backing_file_must_be_named(
    make: Callable[..., Served], path: Path, tmp_path: Path
) -> None:
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", path, "-F", "qcow2", top)
    with pytest.raises(UserError, match="may name other files"):
        make(top)
    disk = make(top, format="qcow2")
    disk.start()
    assert disk.read(8, 512) == bytes(512)


def test_an_image_with_its_data_elsewhere_must_be_named(
    make: Callable[..., Served], tmp_path: Path
) -> None:
    path = tmp_path / "head.qcow2"
    options = f"data_file={tmp_path / 'data'}"
    qemu_img("create", "-f", "qcow2", "-o", options, path, "1M")
    with pytest.raises(UserError, match="may name other files"):
        make(path)


def test_an_image_is_one_machine_s(make: Callable[..., Served], path: Path) -> None:
    make(path)
    with pytest.raises(
        DaemonRefusedError, match=r'--disk .*qemu-storage-daemon ended.*"write" lock'
    ):
        make(path)


def test_what_is_no_image_is_one_clear_error(make: Callable[..., Served], tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_bytes(b"QFI\xfb" + bytes(1020))
    with pytest.raises(
        DaemonRefusedError, match=r"--disk .*broken: qemu-storage-daemon ended.*version"
    ):
        make(path)
    with pytest.raises(UserError, match="No such file"):
        make(tmp_path / "missing")


def test_a_missing_program_is_one_clear_error(
    make: Callable[..., Served], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    message = r"--disk .*: needs qemu-storage-daemon, .*apt-get install qemu-utils"
    with pytest.raises(HostError, match=message):
        make(path)


def test_several_queues_work_at_once(make: Callable[..., Served], path: Path) -> None:
    disk = make(path, queues=4)
    assert disk.driver.offered() & 1 << 12
    disk.driver.negotiate(1 << 12 | 1 << 9)
    rings = [SplitDriver(disk.memory, at=0x4000_0000 + 0x1_0000 * n) for n in range(2)]
    for index, ring in enumerate(rings):
        disk.memory.guest.write(ring.areas.descriptors, bytes(0x1_0000))
        assert disk.driver.set_queue(index, ring.size, ring.areas)
    disk.driver.add_status(status.DRIVER_OK)
    for index, ring in enumerate(rings):
        request(disk, ring, OUT, 8 * index, bytes([index]) * 512, place=index)
        disk.driver.store("QueueNotify", index)
        wait(ring.used)


DEPTH = 32
HEADERS, STATUSES, DATAS = BUFFERS, BUFFERS + 0x1000, BUFFERS + 0x2000


def request(
    disk: Served, ring: SplitDriver, kind: int, sector: int, data: bytes, *, place: int
) -> int:
    """Make a request available, at its own *place* in memory; return its head."""
    header, data_at = HEADERS + 16 * place, DATAS + 512 * place
    disk.memory.pack(header, "IIQ", kind, 0, sector)
    disk.memory.guest.write(STATUSES + place, b"\xff")
    if kind == OUT:
        disk.memory.guest.write(data_at, data)
    return ring.add(
        Buffer(header, 16),
        Buffer(data_at, 512, writable=kind == IN),
        Buffer(STATUSES + place, 1, writable=True),
        indirect=True,
    )


# --- a daemon that dies -------------------------------------------------------------------------


def test_a_daemon_that_is_killed_is_replaced(disk: Served, events: Recorded) -> None:
    for lap in range(3):
        assert disk.write(8 * lap, bytes([lap]) * 512) == OK
        assert disk.request(FLUSH, 0) == OK
        before = disk.pid
        os.kill(before, signal.SIGKILL)
        listen(disk, lambda lap=lap: events.names().count("vhost-user-restarted") > lap)  # type: ignore[misc]
        assert disk.pid != before
        for sector in range(lap + 1):
            assert disk.read(8 * sector, 512) == bytes([sector]) * 512
    assert "virtio-needs-reset" not in events.names()
    assert disk.driver.load("Status") == 0xF


def test_a_daemon_that_died_before_there_was_a_driver_is_replaced(
    make: Callable[..., Served], path: Path, events: Recorded
) -> None:
    disk = make(path)
    os.kill(disk.pid, signal.SIGKILL)
    wait(lambda: "daemon-ended" in events.names())
    disk.start()
    assert disk.read(0, 512) == bytes(512)
    assert "virtio-needs-reset" not in events.names()


def listen(disk: Served, until: Callable[[], object]) -> None:
    """Do what the loop does, until *until* is true."""

    def turn() -> object:
        disk.device.attend()
        return until()

    wait(turn)


def test_no_request_is_lost_or_done_twice_when_daemons_die(
    disk: Served, events: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request is used once, and no write is lost, whenever daemons die.

    They are killed at random moments, with many requests under way.
    """
    monkeypatch.setattr(user_device, "RESTARTS", 1000)
    chance = random.Random(5)  # noqa: S311
    ring = SplitDriver(disk.memory, 128)
    disk.memory.guest.write(BASE, bytes(0x1_0000))
    disk.driver.start(ring.size, ring.areas, 1 << 28)
    places = list(range(DEPTH))
    under_way: dict[int, tuple[int, int, bytes]] = {}
    expected: dict[int, bytes] = {}
    done = kills = restarts = 0
    kill_at = time.monotonic() + 0.05
    deadline = time.monotonic() + 60
    while (done < 3000 or under_way) and time.monotonic() < deadline:
        while places and done < 3000:
            busy = {sector for _, sector, _ in under_way.values()}
            sector = chance.choice([each for each in range(0, 4096, 8) if each not in busy])
            place, data = places.pop(), chance.randbytes(512)
            under_way[request(disk, ring, OUT, sector, data, place=place)] = place, sector, data
            disk.driver.store("QueueNotify", 0)
        for head, _ in ring.used():
            place, sector, data = under_way.pop(head)  # KeyError: used twice
            assert disk.memory.guest.read(STATUSES + place, 1) == b"\x00"
            expected[sector] = data
            places.append(place)
            done += 1
        disk.device.attend()
        restarts = events.names().count("vhost-user-restarted")
        if time.monotonic() > kill_at and restarts == kills and kills < 10:
            os.kill(disk.pid, signal.SIGKILL)
            kills += 1
            kill_at = time.monotonic() + chance.random() * 0.1
    assert not under_way, (done, kills, events.seen)
    listen(disk, lambda: events.names().count("vhost-user-restarted") == kills)
    assert kills > 3
    disk.start()
    for sector, data in expected.items():
        assert disk.read(sector, 512) == data
    disk.driver.transport.close()
    check = subprocess.run(["qemu-img", "check", disk.path], check=False, capture_output=True)
    assert check.returncode in (0, LEAKS), check


def test_a_daemon_that_dies_while_it_takes_over_is_replaced_too(
    make: Callable[..., Served],
    path: Path,
    events: Recorded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program in its place kills itself twice, as soon as it is connected to.

    It counts in a file, and starts programs, so it can have no walls.
    """
    monkeypatch.setattr(broker.current(), "walls", False)
    disk = make(path)
    disk.start()
    real = (Path(os.environ["PATH"].partition(":")[0]) / "qemu-storage-daemon").read_text()
    counter = tmp_path / "counter"
    program = Path(os.environ["PATH"].partition(":")[0]) / "qemu-storage-daemon"
    program.write_text(
        f'#!/bin/sh\necho >>{counter}\n[ "$(wc -l <{counter})" -gt 2 ] || kill -9 $$\n{real}'
    )
    assert disk.write(8, b"x" * 512) == OK
    os.kill(disk.pid, signal.SIGKILL)
    listen(disk, lambda: "vhost-user-restarted" in events.names())
    assert counter.read_text().count("\n") == 3
    assert disk.read(8, 512) == b"x" * 512


def test_a_daemon_that_hangs_is_killed_in_time(
    disk: Served, events: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "GRACE", 0.2)
    os.kill(disk.pid, signal.SIGSTOP)
    began = time.monotonic()
    disk.driver.store("Status", 0)
    assert time.monotonic() - began < 5
    assert events.names().count("daemon-killed") == 1
    disk.start()
    assert disk.read(0, 512) == bytes(512)


def test_whoever_waits_for_a_daemon_that_hangs_can_be_helped_out(
    disk: Served, events: Recorded
) -> None:
    """A vCPU resets the device while the machine is to end."""
    pid = disk.pid
    os.kill(pid, signal.SIGSTOP)
    vcpu = Thread(target=disk.driver.store, args=("Status", 0))
    began = time.monotonic()
    vcpu.start()

    def helped() -> bool:
        disk.device.cancel_waits()
        return "daemon-killed" in events.names()

    wait(helped)
    vcpu.join(10)
    assert time.monotonic() - began < daemon.GRACE / 2
    assert not Path(f"/proc/{pid}").exists()
    assert events.names().count("daemon-killed") == 1


def test_a_daemon_that_nobody_waits_for_is_left_alone(disk: Served, events: Recorded) -> None:
    disk.device.cancel_waits()
    assert disk.write(8, b"x" * 512) == OK
    assert "daemon-killed" not in events.names()


def test_a_daemon_that_keeps_dying_is_given_up(
    disk: Served, events: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_device, "RESTARTS", 1)
    os.kill(disk.pid, signal.SIGKILL)
    listen(disk, lambda: "vhost-user-restarted" in events.names())
    os.kill(disk.pid, signal.SIGKILL)
    listen(disk, lambda: "virtio-needs-reset" in events.names())
    assert disk.driver.load("Status") & status.NEEDS_RESET
    (reason,) = (fields["error"] for name, fields in events.seen if name == "virtio-needs-reset")
    assert "qemu-storage-daemon ended (SIGKILL)" in str(reason)
    assert "given up" in str(reason)
    disk.start()  # the driver resets the device: a new chance
    assert disk.read(0, 512) == bytes(512)


def test_a_disk_whose_daemon_had_a_cache_dies_with_it(
    make: Callable[..., Served], path: Path, events: Recorded
) -> None:
    disk = make(path, cache="writeback")
    disk.start()
    assert disk.write(8, b"x" * 512) == OK
    os.kill(disk.pid, signal.SIGKILL)
    listen(disk, lambda: "virtio-needs-reset" in events.names())
    assert any("not flushed is lost" in str(fields) for _, fields in events.seen)


def test_a_daemon_that_cannot_come_again_breaks_the_device(disk: Served, events: Recorded) -> None:
    disk.path.rename(disk.path.with_suffix(".gone"))
    os.kill(disk.pid, signal.SIGKILL)
    listen(disk, lambda: "virtio-needs-reset" in events.names())
    assert any("No such file" in str(fields) for _, fields in events.seen)
    disk.driver.store("Status", 0)
    disk.path.with_suffix(".gone").rename(disk.path)
    disk.start()
    assert disk.read(0, 512) == bytes(512)


def test_nothing_is_left_behind(make: Callable[..., Served], path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        disk = make(path)
        disk.start()
        pid = disk.pid
        disk.driver.transport.close()
        disk.driver.transport.close()
        assert not Path(f"/proc/{pid}").exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_driver_may_make_no_sense(disk: Served, events: Recorded) -> None:
    """Whatever the daemon does with a broken ring, we continue, and so does the next daemon."""
    disk.memory.guest.write(disk.ring.areas.descriptors, b"\xff" * 128)
    disk.memory.pack(disk.ring.areas.driver + 2, "H", 3)
    disk.driver.store("QueueNotify", 0)
    listen(disk, lambda: {"vhost-user-lost", "virtio-needs-reset"} & set(events.names()))
    disk.start()
    assert disk.read(0, 512) == bytes(512)


# --- pause ----------------------------------------------------------------------------------------


def test_a_paused_disk_serves_nothing_and_goes_on_where_it_was(disk: Served) -> None:
    """The same daemon, the same place in the ring, however often."""
    assert disk.write(8, b"a" * 512) == OK
    pid = disk.pid
    for number in range(3):
        disk.device.pause()
        disk.memory.guest.write(DATA, bytes([number]) * 512)
        disk.add(OUT, 16, Buffer(DATA, 512))
        disk.notify()
        time.sleep(0.2)
        assert not list(disk.ring.used()), "the daemon served a paused ring"
        disk.device.resume()
        disk.used(1)
        assert disk.status() == OK
        assert disk.read(16, 512) == bytes([number]) * 512
    assert disk.read(8, 512) == b"a" * 512
    assert disk.pid == pid


@pytest.mark.parametrize("when", ["before", "paused", "unseen"])
def test_a_daemon_that_is_lost_around_a_pause_is_replaced_at_the_end_of_it(
    make: Callable[..., Served], path: Path, events: Recorded, when: str
) -> None:
    disk = make(path, cache="writethrough")
    disk.start()
    assert disk.write(8, b"a" * 512) == OK
    pid = disk.pid
    if when == "before":
        os.kill(pid, signal.SIGKILL)
        wait(lambda: disk.device.backend._channel and disk.device.backend._channel.ended)
    disk.device.pause()
    if when != "before":
        os.kill(pid, signal.SIGKILL)
        wait(lambda: disk.device.backend._channel and disk.device.backend._channel.ended)
    if when == "paused":
        disk.device.attend()
        time.sleep(0.2)
    assert "vhost-user-restarted" not in events.names()
    disk.add(IN, 8, Buffer(DATA, 512, writable=True))
    disk.notify()
    disk.device.resume()
    disk.used(1)
    assert disk.memory.guest.read(DATA, 512) == b"a" * 512
    assert disk.pid != pid
    wait(lambda: "vhost-user-restarted" in events.names())
    time.sleep(0.2)
    assert events.names().count("vhost-user-restarted") == 1


def test_a_chain_of_images_is_all_that_the_daemon_reaches(
    make: Callable[..., Served], tmp_path: Path
) -> None:
    """It is behind walls, where the image has its name and its base is read-only."""
    (tmp_path / "bases").mkdir()
    base = tmp_path / "bases/base"
    base.write_bytes(os.urandom(1 << 20))
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", "bases/base", tmp_path / "top")
    before = base.read_bytes()
    disk = make(tmp_path / "top", format="qcow2")
    disk.start()
    assert disk.read(8, 4096) == before[4096:][:4096]
    assert disk.write(8, b"x" * 4096) == OK
    assert disk.read(8, 4096) == b"x" * 4096
    root = Path(f"/proc/{disk.pid}/root")
    assert {each.name for each in (root / str(tmp_path)[1:]).iterdir()} == {"bases", "top"}
    assert not (root / "etc/passwd").exists()
    status = Path(f"/proc/{disk.pid}/status").read_text()
    assert "\nSeccomp:\t2\n" in status
    assert "\nNoNewPrivs:\t1\n" in status
    disk.driver.transport.close()
    assert base.read_bytes() == before
