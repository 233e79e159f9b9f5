"""The scratch guest's code matches its assembly, and runs with each granule."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vmm.coherence.scratch import POISON, PROGRAMS, VECTOR


@pytest.mark.parametrize("name", [*PROGRAMS, "vector"])
def test_the_assembler_agrees_with_each_encoding(name: str, tmp_path: Path) -> None:
    program = PROGRAMS.get(name, VECTOR)
    if not shutil.which("aarch64-linux-gnu-as"):
        pytest.skip("aarch64-linux-gnu-as is not installed")
    source = "".join(f"{text}\n" for text, _ in program)
    out = tmp_path / "a.out"
    subprocess.run(["aarch64-linux-gnu-as", "-o", out, "-"], input=source, text=True, check=True)
    raw = tmp_path / "a.bin"
    subprocess.run(["aarch64-linux-gnu-objcopy", "-O", "binary", out, raw], check=True)
    assert raw.read_bytes() == b"".join(word.to_bytes(4, "little") for _, word in program)


def test_the_guest_jumps_with_the_address_in_no_register_and_no_stack() -> None:
    """A range that is not known to be memory may hold any instruction, stores included."""
    last = [text for text, _ in PROGRAMS["jump"]].index("eret")
    written = {"x0": "x2", "x1": "x2"}
    for register, poison in written.items():
        assert f"mov {register}, {poison}" in [text for text, _ in PROGRAMS["jump"][:last]]
    assert POISON >> 39  # beyond what the page table maps
