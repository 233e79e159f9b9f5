"""Guests of Debian's pieces: are they what the rest expects? Booting them is tested elsewhere."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.lab_package import newc
from vmm.arm64 import image
from vmm.errors import HostError, UserError
from vmm.lab.guest import stock_guest, uki

pytestmark = pytest.mark.lab  # Debian's packages are downloaded

LIMIT = 256 << 20


@pytest.mark.parametrize("version", stock_guest.VERSIONS)
def test_debians_kernels_are_images(version: str) -> None:
    kernel = image.load(stock_guest.kernel(version), LIMIT)
    assert kernel.layers == ("Image",)
    assert kernel.page_size == 4096
    banner = b"Linux version " + version.encode() + b"."
    assert bytes(kernel.payload).find(banner) > 0


def test_a_truncated_kernel_is_found_out(tmp_path: Path) -> None:
    whole = stock_guest.kernel().read_bytes()
    path = tmp_path / "vmlinuz"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError, match="truncated"):
        image.load(path, LIMIT)


def test_the_guest_image_is_a_uki_of_its_parts() -> None:
    kernel = image.load(uki.guest_image(), LIMIT)
    assert kernel.layers == ("UKI", "Image")
    assert bytes(kernel.payload) == stock_guest.kernel().read_bytes()
    initrd = bytes(kernel.initrd or b"")
    assert initrd.startswith(stock_guest.initramfs().read_bytes())
    assert b"/virtio_blk.ko\0" in initrd
    assert kernel.cmdline == uki.COMMAND_LINE


def test_the_initramfs_is_small_and_has_what_init_needs() -> None:
    archive = stock_guest.initramfs().read_bytes()
    assert len(archive) < 3 << 20
    names = set(newc.files(archive))
    assert {"init", "dev/console", "etc/fstab", "etc/profile", "bin/sh", "bin/setsid"} <= names
    assert names == {name.lstrip("/") for name in names}


def test_asking_again_builds_nothing() -> None:
    path = uki.guest_image()
    assert uki.guest_image() == path
    assert not list(path.parent.glob(".*"))


def test_another_command_line_is_another_image() -> None:
    path = uki.guest_image(cmdline="console=ttyAMA0 pyvmm.then=poweroff")
    try:
        assert image.load(path, LIMIT).cmdline == "console=ttyAMA0 pyvmm.then=poweroff"
        assert path != uki.guest_image()
    finally:
        path.unlink()


def test_a_kernel_that_debian_lacks_is_named() -> None:
    with pytest.raises(HostError, match=r"no package linux-binary-1\.2\.\*-arm64 in trixie-backpo"):
        stock_guest.kernel("1.2")


@pytest.mark.parametrize("name", ["init.sh", "command.sh"])
def test_init_is_a_script_that_a_shell_parses(name: str) -> None:
    script = Path(stock_guest.__file__).with_name(name)
    subprocess.run(["sh", "-n", str(script)], check=True)
