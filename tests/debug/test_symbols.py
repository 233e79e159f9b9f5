"""Names of functions, from what nm, the kernel and compilers write."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vmm.debug.symbols import NONE, read
from vmm.errors import UserError

MAP = """ffff800080000000 T _text
ffff800080010800 T vectors
ffff800080020000 t spin
ffff800080020040 T after
ffff800082000000 D data
0000000000000000 A absolute
ffff800080030000 T _etext
"""


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "System.map"
    path.write_text(text)
    return path


def test_an_address_is_in_the_function_before_it(tmp_path: Path) -> None:
    symbols = read(file(tmp_path, MAP), "--watchdog 1")
    assert symbols.name(0xFFFF_8000_8002_0010) == "spin+0x10"
    assert symbols.name(0xFFFF_8000_8002_0040) == "after+0x0"
    assert symbols.name(0xFFFF_8000_8200_0000) == "0xffff800082000000"
    assert symbols.name(0x1234) == "0x1234"
    assert NONE.name(0x1234) == "0x1234"


def test_the_vectors_tell_where_the_kernel_is(tmp_path: Path) -> None:
    symbols = read(file(tmp_path, MAP), "--watchdog 1")
    symbols.slide(0xFFFF_8000_8001_0800 + 0x20_0000)
    assert symbols.name(0xFFFF_8000_8022_0010) == "spin+0x10"
    symbols.slide(0)  # a vCPU that has no vectors yet
    assert symbols.name(0xFFFF_8000_8022_0010) == "spin+0x10"


def test_an_executable_has_its_functions(tmp_path: Path) -> None:
    source, program = tmp_path / "a.c", tmp_path / "a"
    source.write_text("int f(void) { return 1; } int main(void) { return f(); }")
    subprocess.run(["cc", "-no-pie", "-o", program, source], check=True)
    listed = subprocess.run(["nm", program], check=True, capture_output=True, text=True).stdout
    words = [line.split() for line in listed.splitlines()]
    at = {each[2]: int(each[0], 16) for each in words if len(each) == 3}
    symbols = read(program, "--watchdog 1")
    assert symbols.name(at["f"]) == "f+0x0"
    assert symbols.name(at["main"] + 4) == "main+0x4"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "has no functions"),
        (b"0000000000000000 T hidden\n", "has no functions"),
        (b"zz T name\n", "is damaged"),
        (b"\x7fELF\x02\x01" + bytes(10), "is damaged"),
        (b"\x7fELF\x02\x01" + b"\xff" * 90, "is damaged"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words):
        read(path, "--watchdog 1")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "none", "--watchdog 1")
