"""A command for the small guest, as an archive behind its initrd."""

from __future__ import annotations

import io
import struct
import subprocess
from pathlib import Path

import pytest

from tests.lab_package import newc
from vmm.arm64 import guest_command, payload
from vmm.config import MachineConfig
from vmm.config.command import CommandConfig
from vmm.cpio import CpioWriter
from vmm.errors import UserError
from vmm.lab.guest import stock_guest

COMMAND = CommandConfig(("it's", "$(x)", "a b\n\udcff", "", "-n"), "/d 'x'", "xterm")


def initrd(name: str = "etc/pyvmm.guest") -> memoryview:
    file = io.BytesIO()
    archive = CpioWriter(file)
    archive.directory("etc")
    archive.file(name, b"")
    archive.close()
    return memoryview(file.getvalue() + b"\0\0")  # not a multiple of 4


def test_the_command_is_behind_the_initrd_where_linux_finds_it() -> None:
    before = initrd()
    data = bytes(guest_command.append(before, COMMAND, "guest.img"))
    assert data.startswith(bytes(before))
    assert newc.files(data[-(-len(before) // 4) * 4 :]) == {
        "etc/pyvmm.command": guest_command.script(COMMAND)
    }


def test_a_shell_reads_what_was_said() -> None:
    script = guest_command.script(COMMAND) + b'printf "<%s>" "$directory" "$tag" "$terminal" "$@"'
    said = subprocess.run(["sh", "-c", script], check=True, capture_output=True).stdout
    assert said == b"</d 'x'><pyvmm.directory><xterm><it's><$(x)><a b\n\xff><><-n>"


def test_in_the_root_directory_nothing_is_shared() -> None:
    assert b"\ntag=\n" in guest_command.script(COMMAND._replace(directory="/"))


@pytest.mark.parametrize("found", [None, initrd("etc/other")])
def test_another_guest_is_refused_in_one_line(found: memoryview | None) -> None:
    with pytest.raises(UserError, match=r"^guest.img: not pyvmm's small guest"):
        guest_command.append(found, COMMAND, "guest.img")


def test_a_payload_has_the_command(tmp_path: Path) -> None:
    image, other = tmp_path / "Image", tmp_path / "initrd"
    image.write_bytes(struct.pack("<II", 0xD503201F, 0xD503201F) * 16)  # nop: a flat binary
    config = MachineConfig(image=image, initrd=other, command=COMMAND)
    other.write_bytes(initrd("etc/other"))
    with pytest.raises(UserError, match="not pyvmm's small guest"):
        payload.load(config)
    other.write_bytes(initrd())
    found = payload.load(config)
    assert bytes(found.initrd or b"") == bytes(guest_command.append(initrd(), COMMAND, ""))
    assert found.cmdline == "console=ttyAMA0 panic=-1 quiet"


def test_the_guests_scripts_know_the_same_names() -> None:
    scripts = Path(stock_guest.__file__).parent
    text = (scripts / "init.sh").read_text() + (scripts / "command.sh").read_text()
    assert guest_command.FILE in text
    for name in ("stdin", "stdout", "stderr", "status"):
        assert f"pyvmm.{name})" in text
