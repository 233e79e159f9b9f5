"""The files of a machine that runs in a lab host are locked on this machine."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmm.cli import ends
from vmm.config import MachineConfig
from vmm.config.disk import parse_disk
from vmm.config.firmware import parse_flash
from vmm.errors import UserError
from vmm.virtio.block.raw_image import RawDisk

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def owned() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    return path


def _config(disk: str = "", flash: str = "") -> MachineConfig:
    return MachineConfig(
        image=Path("Image"),
        disks=(parse_disk(disk),) if disk else (),
        flash=parse_flash(flash) if flash else None,
    )


def test_a_native_machine_does_not_get_a_disk_of_a_lab_hosts(image: Path, owned: ExitStack) -> None:
    ends.lock(_config(f"{image}"), owned)
    with pytest.raises(UserError, match="another machine uses it"):
        RawDisk(image, read_only=True, option="--disk")
    owned.close()
    RawDisk(image, read_only=False, option="--disk").close()


def test_a_lab_host_does_not_get_a_disk_of_a_native_machines(image: Path, owned: ExitStack) -> None:
    with (
        RawDisk(image, read_only=False, option="--disk"),
        pytest.raises(UserError, match=f"--disk {image}: another machine uses it"),
    ):
        ends.lock(_config(f"{image},ro"), owned)


def test_readers_share(image: Path, owned: ExitStack) -> None:
    ends.lock(_config(f"{image},ro"), owned)
    RawDisk(image, read_only=True, option="--disk").close()
    ends.lock(_config(f"{image},ro"), owned)


def test_flash_is_locked(image: Path, owned: ExitStack) -> None:
    ends.lock(_config(flash=f"{image}"), owned)
    with pytest.raises(UserError, match=f"--flash {image}: another machine uses it"):
        ends.lock(_config(flash=f"{image}"), owned)


def test_flash_that_is_to_be_made_is_left_to_the_lab_host(tmp_path: Path, owned: ExitStack) -> None:
    ends.lock(_config(flash=f"{tmp_path / 'none'}"), owned)
