r"""The part of the PE format that EFI kernels use: the machine, and the sections by name.

A kernel with an EFI stub, an EFI zboot kernel and a UKI all are PE files:

    0x00  "MZ"        0x3c  offset of "PE\0\0", machine, number of sections, optional header
                            section table: name, virtual size, ..., offset and size in the file
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

MAGIC = b"MZ"
MACHINE_ARM64 = 0xAA64

MACHINES = {
    0x014C: "x86",
    0x01C0: "32-bit Arm",
    0x01C2: "32-bit Arm",
    0x01C4: "32-bit Arm",
    0x0EBC: "EFI byte code",
    0x5032: "32-bit RISC-V",
    0x5064: "RISC-V",
    0x6232: "32-bit LoongArch",
    0x6264: "LoongArch",
    0x8664: "x86-64",
    MACHINE_ARM64: "arm64",
}

_HEADER = Struct("<4sHH12xHxx")  # signature, machine, sections; size of the optional header
_SECTION = Struct("<8sI4xII16x")  # name, virtual size; size and offset in the file


class Truncated(Exception):  # noqa: N818  (a finding, which the caller puts in words)
    """The file ends before the data that its headers describe."""


class Pe(NamedTuple):
    """The headers of a PE file. Section contents are views of the file."""

    machine: int
    sections: tuple[tuple[str, memoryview], ...]

    @property
    def architecture(self) -> str:
        """The machine by name."""
        return MACHINES.get(self.machine, f"an unknown machine ({self.machine:#06x})")


def parse(data: memoryview) -> Pe | None:
    """Return the headers of *data*; None if it is not a PE file. Raises Truncated."""
    if bytes(data[:2]) != MAGIC:
        return None
    if len(data) < 64:
        raise Truncated
    at = int.from_bytes(data[60:64], "little")
    if at + _HEADER.size > len(data):
        raise Truncated
    signature, machine, count, optional = _HEADER.unpack_from(data, at)
    if signature != b"PE\0\0":
        return None
    at += _HEADER.size + optional
    if at + count * _SECTION.size > len(data):
        raise Truncated
    sections = []
    for name, virtual_size, size, offset in _SECTION.iter_unpack(
        data[at : at + count * _SECTION.size]
    ):
        # The size in the file is rounded up; the virtual size is that of the content.
        size = min(size, virtual_size or size)  # noqa: PLW2901
        if size and offset + size > len(data):
            raise Truncated
        sections.append((name.rstrip(b"\0").decode("latin-1"), data[offset : offset + size]))
    return Pe(machine, tuple(sections))
