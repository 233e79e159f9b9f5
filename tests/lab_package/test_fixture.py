"""Guests for tests: is what a test names in them? Booting them is what other tests do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab_package import newc
from vmm.errors import UserError
from vmm.lab import cache
from vmm.lab.debian import programs
from vmm.lab.guest import fixture, stock_guest

pytestmark = pytest.mark.lab  # Debian's packages are downloaded


@pytest.mark.parametrize("kernel", stock_guest.VERSIONS)
def test_a_guest_has_the_modules_a_test_names(kernel: str) -> None:
    made = fixture.guest(kernel, modules=["virtio_mmio", "virtio-blk", "ext4"])
    files = newc.files(made.initrd.read_bytes())
    (release,) = {Path(name).parts[3] for name in files if name.startswith("usr/lib/modules/")}
    assert "cloud" in release
    assert release.encode() in made.kernel.read_bytes()
    under = f"usr/lib/modules/{release}"
    assert {"virtio_mmio", "virtio_blk"} <= set(files[f"{under}/pyvmm.load"].decode().split())
    blk = files[f"{under}/kernel/drivers/block/virtio_blk.ko"]
    assert blk.startswith(b"\x7fELF")
    assert not blk.endswith(b"~\n")  # unsigned
    for line in files[f"{under}/modules.dep"].decode().splitlines():
        for path in line.replace(":", "").split():
            assert f"{under}/{path}" in files
    assert f"{release.partition('-')[0]}".startswith(kernel)


def test_modules_that_the_cloud_kernel_lacks_are_in_the_standard_one() -> None:
    made = fixture.guest("6.12", modules=["e1000e"])
    assert "cloud" not in made.kernel.name
    assert any(name.endswith("/e1000e.ko") for name in newc.files(made.initrd.read_bytes()))
    with pytest.raises(UserError, match=r"cloud-arm64 kernel 6\.12 has no module e1000e"):
        fixture.guest("6.12", modules=["e1000e"], flavour=stock_guest.CLOUD)
    with pytest.raises(UserError, match=r"arm64 kernel 6\.12 has no module nonesuch"):
        fixture.guest("6.12", modules=["nonesuch"])


def test_programs_come_with_the_libraries_they_load() -> None:
    made = fixture.guest(packages=["e2fsprogs"])
    files = newc.files(made.initrd.read_bytes())
    assert {"usr/sbin/mke2fs", "usr/lib/ld-linux-aarch64.so.1", "lib", "init"} <= set(files)
    libraries = {Path(name).name for name in files}
    wanted = programs.needed(files["usr/sbin/mke2fs"])
    assert "libext2fs.so.2" in wanted
    waiting = list(wanted)
    while waiting:
        library = waiting.pop()
        assert library in libraries
        waiting += programs.needed(files[f"{programs.LIBRARIES}/{library}"])
    assert not any("share/doc" in name for name in files)
    assert len(b"".join(files.values())) < 8 << 20


def test_a_script_is_in_it_as_it_is() -> None:
    script = f"echo '\"quotes\" and\n$lines' {os.getpid()}\n"
    made = fixture.guest(script=script)
    try:
        assert newc.files(made.initrd.read_bytes())["etc/pyvmm.script"] == script.encode()
        assert made == fixture.guest(script=script)
        assert fixture.guest(script=script + "true").initrd != made.initrd
    finally:
        cache.remove(made.initrd)
        cache.remove(fixture.guest(script=script + "true").initrd)


def test_files_of_a_tests_own_are_in_it(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_bytes(os.urandom(100))
    made = fixture.guest(files={"/opt/bin/tool": tool})
    tool.write_bytes(b"another")
    other = fixture.guest(files={"/opt/bin/tool": tool})
    try:
        assert len(newc.files(made.initrd.read_bytes())["opt/bin/tool"]) == 100
        assert newc.files(other.initrd.read_bytes())["opt/bin/tool"] == b"another"
        assert "opt" in newc.files(other.initrd.read_bytes())
    finally:
        cache.remove(made.initrd)
        cache.remove(other.initrd)


def test_what_is_no_elf_needs_no_library() -> None:
    assert programs.needed(b"#!/bin/sh\n") == []
    assert programs.needed(b"") == []
