"""What lab hosts are made of: archives, modules, names of files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.lab_package import newc
from vmm.cpio import CpioWriter
from vmm.lab.debian import modules
from vmm.lab.host import session


def test_an_archive_holds_what_was_put_in(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tool").write_text("#!")
    (tmp_path / "bin/tool").chmod(0o755)
    (tmp_path / "bin/link").symlink_to("tool")
    file = io.BytesIO()
    archive = CpioWriter(file)
    archive.tree(tmp_path, under="usr")
    archive.character_device("dev/console", 5, 1)
    archive.close()
    assert newc.entries(file.getvalue()) == [
        ("usr/bin", 0o040755, b""),
        ("usr/bin/link", 0o120777, b"tool"),
        ("usr/bin/tool", 0o100755, b"#!"),
        ("dev/console", 0o020600, b""),
    ]


DEPENDENCIES = """\
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/net/9p/9pnet.ko.xz: kernel/fs/netfs/netfs.ko.xz
kernel/fs/netfs/netfs.ko.xz:
kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz
kernel/drivers/vfio/vfio.ko.xz:
"""


def test_modules_come_after_all_they_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(DEPENDENCIES)
    found = modules.Modules(tmp_path).closure(("9pnet_virtio", "vfio_pci", "not_in_this_kernel"))
    assert [Path(path).name for path in found] == [
        "netfs.ko.xz",
        "9pnet.ko.xz",
        "9pnet_virtio.ko.xz",
        "vfio.ko.xz",
        "vfio-pci.ko.xz",
    ]


def test_what_modules_ask_for_softly_comes_before_them(tmp_path: Path) -> None:
    """ext4 asks for crc32c, which is an algorithm's name and not a module's."""
    (tmp_path / "modules.dep").write_text(
        "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko\nkernel/fs/jbd2/jbd2.ko:\n"
        "kernel/arch/crc32c-arm64.ko: kernel/lib/hash.ko\nkernel/lib/hash.ko:\n"
    )
    (tmp_path / "modules.softdep").write_text("# comment\nsoftdep ext4 pre: crc32c post: unknown\n")
    (tmp_path / "modules.alias").write_text("alias crc32c crc32c_arm64\nalias of:N*T* other\n")
    found = modules.Modules(tmp_path).closure(["ext4"])
    assert [Path(path).name for path in found] == [
        "hash.ko", "crc32c-arm64.ko", "jbd2.ko", "ext4.ko"
    ]  # fmt: skip


def test_a_module_that_is_built_in_is_not_missing(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(DEPENDENCIES)
    (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio/virtio-pci.ko\n")
    assert modules.Modules(tmp_path).missing(["vfio_pci", "virtio_pci", "floppy"]) == ["floppy"]


def test_a_modules_signature_is_cut_off() -> None:
    signature = bytes(300)
    trailer = bytes(8) + len(signature).to_bytes(4, "big") + b"~Module signature appended~\n"
    assert modules.plain("m.ko", b"module" + signature + trailer) == b"module"
    assert modules.plain("m.ko", b"module") == b"module"


@pytest.mark.parametrize(
    ("outside", "inside"),
    [
        ("/home/me/project", "/home/me/project"),
        ("/srv/../srv/x", "/srv/x"),
        ("/usr/share", "/host/usr/share"),
        ("/var/tmp", "/host/var/tmp"),
        ("/", "/host/"),
    ],
)
def test_paths_are_the_same_inside_unless_the_host_has_its_own(outside: str, inside: str) -> None:
    assert session.inside(outside) == inside


def test_commands_get_few_of_the_callers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("PYVMM_X", "1")
    monkeypatch.setenv("LD_PRELOAD", "nope")
    env = session.environment("abc", {"EXTRA": "2"})
    assert env["TERM"] == "xterm"
    assert env["PYVMM_X"] == "1"
    assert env["EXTRA"] == "2"
    assert env["PATH"].startswith("/run/pyvmm/abc/bin:")
    assert "LD_PRELOAD" not in env
