"""`pyvmm run` refuses bad input with one line, before it starts anything.

These go to a lab host that is never started: whatever can be known without one is said at once.
What only a host can say is in tests/lab/test_bad_input.py.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.arm64.kernel_files import arm64_image, elf, uki

Refusal = Callable[..., str]


@pytest.fixture
def refusal(tmp_path: Path) -> Refusal:
    """``refusal(argument...)`` is the one line that `pyvmm run` with these is refused with."""
    (tmp_path / "guest.img").write_bytes(arm64_image())
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": ""}

    def run(*arguments: str, command: str = "run") -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from vmm.cli import main; main()", command, *arguments],
            check=False,
            capture_output=True,
            cwd=tmp_path,
            env=env,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("pyvmm: ")
        assert done.stderr.count("\n") == 1
        assert done.stderr.endswith("\n")
        assert "; " in done.stderr, "it says what to do"
        return done.stderr.removeprefix("pyvmm: ").strip()

    return run


@pytest.fixture
def refused_image(refusal: Refusal, tmp_path: Path) -> Callable[[bytes], str]:
    def refused(content: bytes) -> str:
        (tmp_path / "some.img").write_bytes(content)
        line = refusal("--host", "lab", "some.img")
        assert line.startswith("some.img: "), "it names the file"
        return line

    return refused


def test_a_file_that_is_not_there(refusal: Refusal) -> None:
    assert refusal("--host", "lab", "none.img").startswith("none.img: No such file or directory; ")


def test_a_directory(refusal: Refusal) -> None:
    assert refusal("--host", "lab", ".").startswith(".: a directory; ")


def test_a_path_through_a_file(refusal: Refusal) -> None:
    line = refusal("--host", "lab", "guest.img/vmlinuz")
    assert line.startswith("guest.img/vmlinuz: Not a directory; ")


def test_an_empty_file(refused_image: Callable[[bytes], str]) -> None:
    assert "the file is empty" in refused_image(b"")


def test_a_truncated_image(refused_image: Callable[[bytes], str]) -> None:
    whole = uki(arm64_image())
    assert "truncated" in refused_image(whole[: len(whole) // 2])


def test_a_truncated_gzip(refused_image: Callable[[bytes], str]) -> None:
    whole = gzip.compress(arm64_image(body=os.urandom(100_000)))
    line = refused_image(whole[: len(whole) // 2])
    assert "gzip" in line
    assert "truncated" in line


def test_an_image_for_another_architecture(refused_image: Callable[[bytes], str]) -> None:
    assert "x86-64" in refused_image(elf([(0x100_0000, b"\x90" * 64)], machine=62))


def test_an_x86_kernel(refused_image: Callable[[bytes], str]) -> None:
    setup = bytearray(4096)
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    assert "x86" in refused_image(bytes(setup))


def test_random_bytes(refused_image: Callable[[bytes], str]) -> None:
    noise = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(256))
    assert "neither a known format nor A64 code" in refused_image(noise)


def test_text(refused_image: Callable[[bytes], str]) -> None:
    assert "text" in refused_image(b"#!/bin/sh\necho hello\n" * 50)


def test_an_initrd_that_is_not_there(refusal: Refusal) -> None:
    line = refusal("--host", "lab", "--initrd", "none.cpio", "guest.img")
    assert line.startswith("none.cpio: No such file or directory; ")


def test_an_initrd_too_big_for_ram(refusal: Refusal, tmp_path: Path) -> None:
    with (tmp_path / "big.cpio").open("wb") as file:
        file.truncate(80 << 20)
    line = refusal("--host", "lab", "--memory", "64M", "--initrd", "big.cpio", "guest.img")
    assert line == (
        "big.cpio: the initrd (80 MiB) does not fit in 64 MiB of RAM; use --memory 256M"
    )


def test_a_kernel_too_big_for_ram(refusal: Refusal) -> None:
    line = refusal("--host", "lab", "--memory", "1M", "guest.img")
    assert line.startswith("guest.img: the kernel (1 MiB) does not fit in 1 MiB of RAM; ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--memory", "0"], "--memory: "),
        (["--memory", "-1"], "--memory: '-1' is not a size; "),
        (["--memory", "lots"], "--memory: 'lots' is not a size; "),
        (["--memory", "9" * 5000], "is not a size; "),
        (["--cpus", "0"], "--cpus: a machine has at least one CPU, not 0; "),
        (["--cpus", "-3"], "--cpus: "),
        (["--cpus", "two"], "'two' is not a valid integer; "),
        (["--escape", "F1"], "--escape F1: not a control key; "),
        (["--events", "none/events.json"], "--events none/events.json: No such file or directory"),
        (["--cmdline"], "--cmdline"),
        (["--frobnicate"], "--frobnicate"),
        (["--host", "moon"], "--host moon: no such host; "),
        (["--host", "lab:moon"], "there is no lab profile 'moon'; there are: fwb, "),
    ],
)
def test_an_option_that_makes_no_sense(refusal: Refusal, arguments: list[str], said: str) -> None:
    line = refusal("--host", "lab", "guest.img", *arguments)
    assert said in line
    assert len(line) < 6000


def test_no_image_at_all(refusal: Refusal) -> None:
    assert "IMAGE" in refusal("--host", "lab")


def test_an_unknown_command(refusal: Refusal) -> None:
    assert "'rum'" in refusal(command="rum")


def test_nothing_to_boot(refusal: Refusal) -> None:
    line = refusal("--host", "lab")
    assert line == "there is nothing to boot; name an IMAGE, or use --firmware FILE"


def test_firmware_that_is_not_there(refusal: Refusal) -> None:
    line = refusal("--host", "lab", "--firmware", "none.fd")
    assert line.startswith("--firmware none.fd: No such file or directory; ")


def test_firmware_that_is_a_kernel(refusal: Refusal) -> None:
    line = refusal("--host", "lab", "--firmware", "guest.img")
    assert line.startswith("--firmware guest.img: ")
    assert line.endswith("name it as IMAGE")


def test_firmware_and_a_kernel(refusal: Refusal) -> None:
    line = refusal("--host", "lab", "--firmware", "code.fd", "guest.img")
    assert line.startswith("--firmware code.fd: IMAGE guest.img is for machines without: ")


def test_flash_that_is_too_large(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "vars.fd").touch()
    os.truncate(tmp_path / "vars.fd", (64 << 20) + 1)
    line = refusal("--host", "lab", "--flash", "vars.fd", "guest.img")
    assert line.startswith("--flash vars.fd: 67108865 bytes are more than the 64 MiB of a bank")


def test_a_command_line_that_linux_would_cut_is_refused(refusal: Refusal) -> None:
    line = refusal("--host", "lab", "--cmdline", "x" * 2048, "guest.img")
    assert line.startswith("the kernel command line has 2048 bytes")


def test_events_do_not_go_where_the_console_is(refusal: Refusal, tmp_path: Path) -> None:
    line = refusal("--host", "lab", "--events", "-", "guest.img")
    assert line.startswith("--events -: standard output is the guest's console")
    assert not (tmp_path / "-").exists()


def test_two_cards_with_one_address_are_refused(refusal: Refusal) -> None:
    mac = "mac=52:54:00:00:00:01"
    line = refusal("--host", "lab", "--net", f"tap,{mac}", "--net", f"user,{mac}", "guest.img")
    assert line.startswith(f"--net user,{mac}: --net tap,{mac} has this MAC address, too")
