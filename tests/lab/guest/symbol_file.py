"""A file for gdb with a kernel's symbols, made of what the kernel's own /proc/kallsyms lists."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Final

AARCH64: Final = 183
_LINE: Final = re.compile(r"([0-9a-f]{16}) \w (\w+)\s*$")
_SECTIONS: Final = b"\0.text\0.data\0.symtab\0.strtab\0.shstrtab\0"
_HEADER: Final = 64


def addresses(kallsyms: str) -> dict[str, int]:
    """Return the kernel's own symbols, not those of modules, by name; the first of each name."""
    found: dict[str, int] = {}
    for line in kallsyms.splitlines():
        if match := _LINE.match(line):
            found.setdefault(match[2], int(match[1], 16))
    return found


def write(path: Path, symbols: dict[str, int]) -> None:
    """Write *symbols* as an ELF file without contents, for ``gdb FILE``."""
    start, end = symbols["_text"], symbols["_einittext"]  # to the end of the code of __init
    names, table = bytearray(b"\0"), bytearray(24)
    for name, address in symbols.items():
        if not start <= address < start + (1 << 32):
            continue
        is_text = address < end
        kind, section = (2, 1) if is_text else (1, 2)  # STT_FUNC, STT_OBJECT
        table += struct.pack("<IBBHQQ", len(names), 1 << 4 | kind, 0, section, address, 0)
        names += name.encode() + b"\0"
    at = _HEADER
    offsets = []
    for part in (table, names, _SECTIONS):
        offsets.append(at)
        at += len(part)

    def header(name: bytes, *fields: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", _SECTIONS.index(name + b"\0"), *fields)

    headers = bytes(64)
    headers += header(b".text", 8, 6, start, 0, end - start, 0, 0, 4096, 0)  # SHT_NOBITS
    headers += header(b".data", 8, 3, end, 0, (1 << 32) - (end - start), 0, 0, 8, 0)
    headers += header(b".symtab", 2, 0, 0, offsets[0], len(table), 4, 1, 8, 24)
    headers += header(b".strtab", 3, 0, 0, offsets[1], len(names), 0, 0, 1, 0)
    headers += header(b".shstrtab", 3, 0, 0, offsets[2], len(_SECTIONS), 0, 0, 1, 0)
    elf = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf += struct.pack("<HHIQQQIHHHHHH", 2, AARCH64, 1, start, 0, at, 0, 64, 56, 0, 64, 6, 5)
    path.write_bytes(elf + table + names + _SECTIONS + headers)
