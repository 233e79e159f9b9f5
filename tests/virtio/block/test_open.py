"""From ``--disk`` to a device: an image's format, and what serves it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.recorded import Recorded
from tests.virtio.ring_driver import Memory
from vmm.config import MachineConfig
from vmm.config.disk import DiskConfig
from vmm.errors import UserError
from vmm.virtio.block.device import Blk
from vmm.virtio.block.image_format import MAGIC, with_formats
from vmm.virtio.block.open import open_disk
from vmm.virtio.queue import MemoryMap

QCOW2 = struct.pack(">4sIQ", b"QFI\xfb", 3, 0).ljust(512, b"\0")


def machine(*disks: DiskConfig) -> MachineConfig:
    return MachineConfig(image=Path("Image"), disks=disks)


def test_an_image_is_looked_at_once(tmp_path: Path) -> None:
    raw, other, said = (tmp_path / name for name in ("raw", "other", "said"))
    raw.write_bytes(bytes(512))
    other.write_bytes(QCOW2)
    disks = DiskConfig(raw), DiskConfig(other), DiskConfig(said, format="raw")
    config = with_formats(machine(*disks))
    assert [disk.format for disk in config.disks] == ["raw", "qcow2", "raw"]
    assert [disk.guessed for disk in config.disks] == [True, True, False]
    raw.unlink()
    other.unlink()
    assert with_formats(config) == config


def test_only_what_a_daemon_serves_shares_memory(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(512))
    assert not with_formats(machine(DiskConfig(path))).shares_memory
    path.write_bytes(QCOW2)
    assert with_formats(machine(DiskConfig(path))).shares_memory
    assert not with_formats(machine(DiskConfig(path, format="raw"))).shares_memory


def test_a_raw_image_is_served_by_threads(memory: Memory, path: Path) -> None:
    with open_disk("disk0", DiskConfig(path), MemoryMap(memory.guest), Recorded()) as device:
        assert isinstance(device, Blk)


@pytest.mark.parametrize("said", ["auto", "raw"])
def test_a_disk_stays_raw_unless_the_user_said_so(memory: Memory, path: Path, said: str) -> None:
    config = with_formats(machine(DiskConfig(path, format=said)))
    for disk in (DiskConfig(path, format=said), *config.disks):
        with open_disk("disk0", disk, MemoryMap(memory.guest), Recorded()) as device:
            assert isinstance(device, Blk)
            assert device.disk.magic_count == (len(MAGIC) if said == "auto" else 0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cache": "none"}, "cache=none is for raw disks, and this is qcow2"),
        ({"serial": "1"}, "only a raw disk can have a serial number, and this is qcow2"),
    ],
)
def test_what_a_daemon_cannot_do_is_refused(
    memory: Memory, tmp_path: Path, options: dict[str, str], complaint: str
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(QCOW2)
    with pytest.raises(UserError, match=complaint):
        open_disk("disk0", DiskConfig(path, **options), MemoryMap(memory.guest), Recorded())  # type: ignore[arg-type]
