"""Names of a kernel's functions, from System.map or /proc/kallsyms, or from vmlinux.

Source: nm(1) for the lines of the first two; the ELF-64 object file format for the third.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ELF: Final = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_SYMTAB: Final = 2
_CODE: Final = frozenset("tTwW")
_FIELDS: Final = 3
_STT_FUNC: Final = 2
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")

VECTORS: Final = "vectors"
"""Linux's exception vectors at EL1: the value of VBAR_EL1 tells how far KASLR moved the kernel."""


class Symbols:
    """Functions by address. *pairs* are addresses and names, in any order."""

    def __init__(self, pairs: Iterator[tuple[int, str]]) -> None:
        found = sorted(pairs)
        self._addresses = [address for address, _ in found]
        self._names = [name for _, name in found]
        self._slide = 0

    def __len__(self) -> int:
        return len(self._names)

    def slide(self, vbar: int) -> None:
        """Take the kernel to be where its vectors are: VBAR_EL1 is *vbar*. 0: not yet known."""
        if vbar and VECTORS in self._names:
            self._slide = vbar - self._addresses[self._names.index(VECTORS)]

    def name(self, address: int) -> str:
        """Return *address* as ``function+0x10``, or in hex if it is in none."""
        index = bisect_right(self._addresses, address - self._slide) - 1
        if not 0 <= index < len(self._names) - 1:  # before the first, or behind the last
            return f"{address:#x}"
        return f"{self._names[index]}+{address - self._slide - self._addresses[index]:#x}"


NONE: Final = Symbols(iter(()))
"""No symbols: addresses stay numbers."""


def read(path: Path, option: str) -> Symbols:
    """Return the symbols in *path*. Raises `UserError`, which names *option*."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{option}: {path}: {error.strerror}", "name a file to read") from error
    try:
        symbols = Symbols(_elf(data) if data.startswith(_ELF) else _lines(data))
    except (struct.error, LookupError, OverflowError, ValueError) as error:
        raise UserError(f"{option}: {path} is damaged: {error}", "name another file") from error
    if not len(symbols):
        raise UserError(
            f"{option}: {path} has no functions",
            "name a vmlinux, a System.map, or a copy of /proc/kallsyms that root made",
        )
    return symbols


def _lines(data: bytes) -> Iterator[tuple[int, str]]:
    for line in data.decode("ascii", "replace").splitlines():
        words = line.split()
        if len(words) >= _FIELDS and words[1] in _CODE and (address := int(words[0], 16)):
            yield address, words[2]


def _elf(data: bytes) -> Iterator[tuple[int, str]]:
    start, size, count = (
        struct.unpack_from("<Q", data, 0x28)[0],
        *struct.unpack_from("<HH", data, 0x3A),
    )
    sections = [_SECTION.unpack_from(data, start + index * size) for index in range(count)]
    for _, kind, _, _, offset, length, link, *_ in sections:
        if kind != _SYMTAB:
            continue
        names = sections[link][4]
        for name, info, _, _, value, _ in _SYMBOL.iter_unpack(data[offset : offset + length]):
            if info & 15 == _STT_FUNC and value:
                end = data.index(b"\0", names + name)
                yield value, data[names + name : end].decode("ascii", "replace")
