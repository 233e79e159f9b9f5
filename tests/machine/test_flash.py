"""Flash: a bank's contents, their file, and the check of files."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recorded import Recorded
from vmm import sigbus
from vmm.bus import MmioBus
from vmm.config import MachineConfig
from vmm.config.firmware import FlashConfig
from vmm.devices.cfi_flash import BLOCK, SIZE
from vmm.errors import UserError
from vmm.fdt import cells, strings
from vmm.machine.flash import Flash, check_files
from vmm.machine.flash_file import PIECE, FlashFile
from vmm.sigbus import LostError

MIB = 1 << 20


def opened(path: Path | None, *, read_only: bool = False) -> FlashFile:
    return FlashFile(path, option="--flash", read_only=read_only, make=not read_only)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vars.fd"


# --- a file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, PIECE - 1, PIECE, PIECE + 5, 5 * MIB])
def test_what_a_file_does_not_have_is_erased(path: Path, size: int) -> None:
    data = os.urandom(size)
    path.write_bytes(data)
    with opened(path) as file:
        assert file.read(0, SIZE) == data.ljust(SIZE, b"\xff")
    assert path.read_bytes() == data, "it is not written by being read"


def test_a_file_as_large_as_a_bank_is_all_of_it(path: Path) -> None:
    path.touch()
    os.truncate(path, SIZE)
    with opened(path) as file:
        assert file.read(0, 4) == file.read(SIZE - 4, 4) == bytes(4)


def test_a_file_that_is_cut_is_an_error_and_not_the_end(path: Path) -> None:
    path.write_bytes(b"x" * MIB)
    with opened(path) as file:
        file.write(MIB - 4096, b"y")
        os.truncate(path, 4096)
        assert file.read(4095, 2) == b"x\0"
        with pytest.raises(LostError, match=r"^--flash"):
            sigbus.check()
    sigbus.check()


def test_a_file_that_is_not_there_is_made(path: Path) -> None:
    with opened(path) as file:
        file.write(3, b"abc")
    assert path.read_bytes() == b"\xff\xff\xffabc"


def test_it_grows_as_far_as_it_is_written(path: Path) -> None:
    with opened(path) as file:
        file.write(BLOCK, b"\xff" * BLOCK)
        assert path.stat().st_size == 0, "which it was"
        file.write(10, b"abc\xff\xff")
        assert path.stat().st_size == 13
        file.write(12, b"d\xff\xff\xff")
        file.write(0, b"\xff" * BLOCK)
        file.write(100, b"e")
    assert path.read_bytes() == b"\xff" * 100 + b"e"


places = st.integers(0, 3 * BLOCK) | st.sampled_from([0, 1, BLOCK - 1, SIZE - 40])
pieces = st.binary(min_size=1, max_size=40) | st.just(b"\xff" * 40) | st.just(b"\xff" * BLOCK)


@given(
    st.binary(max_size=40),
    st.lists(st.tuples(places, pieces, st.booleans()), max_size=8),
)
def test_all_that_was_written_is_there_again(
    first: bytes, writes: list[tuple[int, bytes, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        path = Path(directory, "file")
        path.write_bytes(first)
        expected = bytearray(first.ljust(4 * BLOCK, b"\xff"))
        end = bytearray(b"\xff" * 40)
        file = stack.enter_context(opened(path))
        for offset, data, again in writes:
            if offset < SIZE - 40:
                expected[offset : offset + len(data)] = data
            else:
                data = data[:40]  # noqa: PLW2901
                end[: len(data)] = data
            file.write(offset, data)
            if again:
                stack.close()
                file = stack.enter_context(opened(path))
            assert file.read(0, len(expected)) == expected
            assert file.read(SIZE - 40, 40) == end
        stack.close()
        size = len(path.read_bytes())
        assert size <= max([len(first), *(at + len(data) for at, data, _ in writes)])


def test_without_a_file_it_is_kept_until_the_end() -> None:
    with opened(None) as file:
        file.write(5, b"abc")
        assert file.read(4, 5) == b"\xffabc\xff"
    with opened(None) as file:
        assert file.read(4, 5) == b"\xff" * 5


def test_what_is_only_read_needs_no_permission_to_write(path: Path) -> None:
    path.write_bytes(b"abc")
    path.chmod(0o400)
    with opened(path, read_only=True) as file, opened(path, read_only=True):
        assert file.read(0, 4) == b"abc\xff"


def test_a_full_disk_is_an_error_that_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with opened(path) as file:
        file.write(0, b"abc")
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="full"):
            file.write(0, b"def")
        assert file.read(0, 3) == b"abc"


def proportional() -> int:
    """Return the process's proportional set size in bytes (proc(5))."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(kib) << 10 for kib in re.findall(r"(?m)^Pss: +(\d+) kB", text))


def test_erased_flash_takes_no_memory() -> None:
    with opened(None) as file:
        before = proportional()
        assert file.read(0, MIB) == b"\xff" * MIB
        for at in range(0, SIZE, 4096):
            file.read(at, 1)
        assert proportional() - before < 2 * PIECE


def test_files_are_closed(path: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    for _ in range(2):
        with opened(path) as file:
            file.write(0, b"a")
            file.sync()
        file.close()
    assert sorted(Path("/proc/self/fd").iterdir()) == before
    assert "erased flash" not in Path("/proc/self/maps").read_text()


# --- what cannot be -----------------------------------------------------------------------------


def test_two_machines_cannot_have_the_same_file(path: Path) -> None:
    with opened(path), pytest.raises(UserError, match=r"--flash \S+: another machine uses it; "):
        opened(path)


def test_one_that_is_read_only_is_shared_and_kept_from_writers(path: Path) -> None:
    path.touch()
    with (
        opened(path, read_only=True),
        opened(path, read_only=True),
        pytest.raises(UserError, match="another machine uses it"),
    ):
        opened(path)


def test_firmware_cannot_keep_its_variables_in_itself(tmp_path: Path) -> None:
    code, link = tmp_path / "code.fd", tmp_path / "vars.fd"
    code.write_bytes(b"code")
    link.symlink_to(code)
    config = MachineConfig(firmware=code, flash=FlashConfig(link))
    with pytest.raises(UserError, match=r"--flash \S+: it is what --firmware names; "):
        Flash(config, MmioBus(), Recorded())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/vars.fd", "No such file or directory"),
        (".", "Is a directory|not a regular file"),
        ("large", "more than the 64 MiB of a bank"),
        ("pipe", "not a regular file"),
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_what_cannot_be_flash(tmp_path: Path, name: str, message: str, *, read_only: bool) -> None:
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", SIZE + 1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=rf"--flash \S+: .*{message}.*; "):
        opened(tmp_path / name, read_only=read_only)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (bytes(56) + b"ARM\x64", "like a Linux kernel; name it as IMAGE"),
        (b"MZ", "an EFI program; have firmware load it"),
        (b"QFI\xfb", "qcow2 image; convert it"),
    ],
)
def test_what_is_known_not_to_be_firmware(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "code.fd"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"--firmware \S+: .*{message}"):
        Flash(MachineConfig(firmware=path), MmioBus(), Recorded())


def check(code: Path, flash: Path, *, read_only: bool = False) -> None:
    code.write_bytes(b"code")
    check_files(MachineConfig(firmware=code, flash=FlashConfig(flash, read_only)))


def test_a_check_makes_no_file(tmp_path: Path) -> None:
    check(tmp_path / "code.fd", tmp_path / "vars.fd")
    (tmp_path / "link.fd").symlink_to("vars.fd")
    check(tmp_path / "code.fd", tmp_path / "link.fd")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["code.fd", "link.fd"]


def test_a_check_changes_no_file(tmp_path: Path) -> None:
    (tmp_path / "vars.fd").write_bytes(b"variables")
    check(tmp_path / "code.fd", tmp_path / "vars.fd")
    assert (tmp_path / "vars.fd").read_bytes() == b"variables"


@pytest.mark.parametrize("read_only", [False, True])
def test_a_check_finds_what_could_not_be_opened(tmp_path: Path, *, read_only: bool) -> None:
    with pytest.raises(UserError, match=r"--flash \S+: No such file or directory; "):
        check(tmp_path / "code.fd", tmp_path / "none" / "vars.fd", read_only=read_only)
    (tmp_path / "link.fd").symlink_to("none/vars.fd")
    with pytest.raises(UserError, match=r"--flash \S+: No such file or directory; "):
        check(tmp_path / "code.fd", tmp_path / "link.fd", read_only=read_only)
    with pytest.raises(UserError, match=r"--flash \S+: Not a directory; "):
        check(tmp_path / "code.fd", tmp_path / "code.fd" / "vars.fd", read_only=read_only)
    with pytest.raises(UserError, match=r"--flash \S+: it is what --firmware names; "):
        check(tmp_path / "code.fd", tmp_path / "code.fd", read_only=read_only)


def test_a_check_finds_a_directory_that_takes_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # root may write anywhere
    with pytest.raises(UserError, match=r"--flash \S+: Permission denied; "):
        check(tmp_path / "code.fd", tmp_path / "vars.fd")


# --- the banks ----------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    code = tmp_path / "code.fd"
    code.write_bytes(b"code")
    return MachineConfig(firmware=code, flash=FlashConfig(tmp_path / "vars.fd"))


@pytest.fixture
def bus() -> MmioBus:
    return MmioBus()


@pytest.fixture
def flash(config: MachineConfig, bus: MmioBus) -> Iterator[Flash]:
    with Flash(config, bus, Recorded()) as flash:
        yield flash


def program(bus: MmioBus, at: int, value: int) -> int:
    """Program a word as a guest does; return the status."""
    bus.write(at, 4, 0x40_0040)
    bus.write(at, 4, value)
    status = bus.read(at, 4)
    bus.write(at, 4, 0x50_0050)
    bus.write(at, 4, 0xFF_00FF)
    return status


def test_firmware_is_read_only_and_what_it_keeps_is_not(
    flash: Flash, bus: MmioBus, config: MachineConfig
) -> None:
    assert bus.read(0, 8) == int.from_bytes(b"code\xff\xff\xff\xff", "little")
    assert program(bus, 0, 0) == 0x92_0092
    assert bus.read(0, 4) == int.from_bytes(b"code", "little")
    assert program(bus, SIZE + 4, 0x6162_6364) == 0x80_0080
    assert bus.read(SIZE + 4, 4) == 0x6162_6364
    flash.close()
    assert config.firmware is not None
    assert config.firmware.read_bytes() == b"code"
    assert config.flash is not None
    assert config.flash.path.read_bytes() == b"\xff\xff\xff\xffdcba"


def test_the_device_tree_names_both_banks(flash: Flash) -> None:
    node = flash.node()
    assert node.name == "flash@0"
    assert strings(node.properties["compatible"]) == ["cfi-flash"]
    assert cells(node.properties["reg"], 2) == (0, SIZE, SIZE, SIZE)


def test_flash_without_firmware_is_the_second_bank(tmp_path: Path, bus: MmioBus) -> None:
    config = MachineConfig(image=tmp_path, flash=FlashConfig(tmp_path / "vars.fd"))
    with Flash(config, bus, Recorded()) as flash:
        assert flash.node().name == f"flash@{SIZE:x}"
        assert bus.find(0, 4) is None
        assert bus.read(SIZE, 4) == 0xFFFF_FFFF


def test_variables_in_a_file_that_is_only_read_cannot_change(
    config: MachineConfig, bus: MmioBus, tmp_path: Path
) -> None:
    path = tmp_path / "vars.fd"
    path.write_bytes(b"vars")
    config = MachineConfig(firmware=config.firmware, flash=FlashConfig(path, read_only=True))
    with Flash(config, bus, Recorded()):
        assert program(bus, SIZE, 0) == 0x92_0092
    assert path.read_bytes() == b"vars"


def test_variables_that_no_file_keeps_outlast_a_reset(config: MachineConfig, bus: MmioBus) -> None:
    with Flash(MachineConfig(firmware=config.firmware), bus, Recorded()) as flash:
        program(bus, SIZE, 0)
        bus.write(SIZE, 4, 0x98_0098)
        flash.reset()
        assert bus.read(SIZE, 4) == 0, "and it shows the array again"
