"""The files of a disk image: what its daemon has to reach."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.virtio.vhost import debian_daemons
from vmm.config.disk import DiskConfig
from vmm.errors import UserError
from vmm.virtio.block.image_files import image_files


@pytest.fixture(autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    debian_daemons.install(tmp_path_factory.mktemp("bin"), monkeypatch)


def qemu_img(*arguments: str | Path, directory: Path) -> None:
    command = ["qemu-img", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, cwd=directory)


def files(path: Path, **options: object) -> list[tuple[str, bool]]:
    options = {"format": "qcow2", **options}
    return image_files(str(path), DiskConfig(path, **options))  # type: ignore[arg-type]


def test_an_image_alone_is_one_file(tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", "disk", "1M", directory=tmp_path)
    assert files(tmp_path / "disk") == [(str(tmp_path / "disk"), True)]
    assert files(tmp_path / "disk", read_only=True) == [(str(tmp_path / "disk"), False)]
    for other in ("raw", "vhdx", "vhd"):
        assert files(tmp_path / "disk", format=other) == [(str(tmp_path / "disk"), True)]


def test_a_chain_is_followed_to_its_end_and_only_the_first_is_written(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    qemu_img("create", "-f", "raw", "b/base", "1M", directory=tmp_path)
    middle = ("create", "-f", "qcow2", "-F", "raw", "-b", "../b/base")
    qemu_img(*middle, "a/middle", directory=tmp_path)
    qemu_img("create", "-f", "vmdk", "b/lowest", "1M", directory=tmp_path)
    top = ("create", "-f", "qcow2", "-F", "qcow2", "-b", tmp_path / "a/middle")
    qemu_img(*top, "b/top", directory=tmp_path)
    assert files(tmp_path / "b/top") == [
        (str(tmp_path / "b/top"), True),
        (str(tmp_path / "a/middle"), False),
        (f"{tmp_path}/a/../b/base", False),
    ]


def test_names_are_relative_to_the_name_that_was_given(tmp_path: Path) -> None:
    """As QEMU takes them: a symbolic link counts, and not what it leads to."""
    (tmp_path / "images").mkdir()
    qemu_img("create", "-f", "raw", "base", "1M", directory=tmp_path)
    qemu_img("create", "-f", "qcow2", "images/top", "1M", directory=tmp_path)
    rebase = ("rebase", "-u", "-F", "raw", "-b", "base", "images/top")
    qemu_img(*rebase, directory=tmp_path)
    (tmp_path / "link").symlink_to("images/top")
    assert files(tmp_path / "link")[1] == (str(tmp_path / "base"), False)
    with pytest.raises(UserError, match=r"images/base: No such file"):
        files(tmp_path / "images/top")


def test_a_data_file_is_written(tmp_path: Path) -> None:
    create = ("create", "-f", "qcow2", "-o", "data_file=data", "disk", "1M")
    qemu_img(*create, directory=tmp_path)
    assert files(tmp_path / "disk")[1:] == [(str(tmp_path / "data"), True)]


def test_a_vmdk_may_have_extents_and_a_parent(tmp_path: Path) -> None:
    flat = ("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", "flat.vmdk", "1M")
    qemu_img(*flat, directory=tmp_path)
    assert files(tmp_path / "flat.vmdk", format="vmdk") == [
        (str(tmp_path / "flat.vmdk"), True),
        (str(tmp_path / "flat-flat.vmdk"), True),
    ]
    qemu_img("create", "-f", "vmdk", "base.vmdk", "1M", directory=tmp_path)
    child = ("create", "-f", "vmdk", "-F", "vmdk", "-b", "base.vmdk", "child.vmdk")
    qemu_img(*child, directory=tmp_path)
    assert files(tmp_path / "child.vmdk", format="vmdk") == [
        (str(tmp_path / "child.vmdk"), True),
        (str(tmp_path / "base.vmdk"), False),
    ]


def old_image(directory: Path, backing: str) -> Path:
    """Return an image that does not say what format its backing file has, as old ones do not."""
    path = directory / "old"
    qemu_img("create", "-f", "qcow2", "old", "1M", directory=directory)
    qemu_img("rebase", "-u", "-F", "raw", "-b", backing, "old", directory=directory)
    data = bytearray(path.read_bytes())
    at = data.index((0xE2792ACA).to_bytes(4, "big"))
    data[at : at + 4] = b"\0\0\0\1"
    path.write_bytes(data)
    return path


def test_what_a_guest_may_have_made_an_image_is_not_followed(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(bytes(1 << 20))
    assert files(old_image(tmp_path, "base"))[1:] == [(str(base), False)]
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", base, directory=tmp_path)
    with pytest.raises(UserError, match="base looks like a qcow2 image"):
        files(old_image(tmp_path, "base"))


@pytest.mark.parametrize("name", ["nbd://host/x", "json:{}", "https://host/x"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="which is no file"):
        files(old_image(tmp_path, name))


def test_a_chain_that_is_a_ring_is_refused(tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", "disk", "1M", directory=tmp_path)
    qemu_img("rebase", "-u", "-F", "qcow2", "-b", "disk", "disk", directory=tmp_path)
    with pytest.raises(UserError, match="twice"):
        files(tmp_path / "disk")


@pytest.mark.parametrize("kind", ["qcow2", "vmdk"])
def test_any_bytes_are_no_crash(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "disk"
    for start in (b"", b"QFI\xfb", b"KDMV", b"# Disk DescriptorFile\n"):
        for size in (0, 60, 100, 200, 4096):
            path.write_bytes(start + os.urandom(size))
            with suppress(UserError):
                assert files(path, format=kind)[0] == (str(path), True)
