"""Capability chains, which VFIO appends to the answers of its INFO ioctls.

    | struct ...info | ... | header: id, version, next | data | ... | header | data |
           cap_offset ------^                    next ----------------^

Offsets count from the start of the answer, and 0 ends the chain (<linux/vfio.h>,
vfio_info_cap_header).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm._native import ffi
from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = "struct vfio_info_cap_header"


class InfoCapsError(HostError):
    """The kernel's answer has a malformed capability chain."""

    def __init__(self, what: str) -> None:
        super().__init__(f"VFIO's capability chain {what}", "this is a bug of the device's driver")


class InfoCap:
    """One link of a chain."""

    def __init__(self, answer: bytes, offset: int) -> None:
        self._answer = answer
        self._offset = offset
        header = self.struct(_HEADER)
        self.id = int(header.id)
        self.version = int(header.version)
        self.next = int(header.next)

    def struct(self, name: str, items: int = 0, item: str = "") -> Any:
        """Return the capability as *name*, then *items* of *item*. Raises `InfoCapsError`."""
        size = ffi.sizeof(name) + (items * ffi.sizeof(item) if item else 0)
        if size > len(self._answer) - self._offset:
            raise InfoCapsError(f"ends within a capability at {self._offset:#x}")
        # A copy, for alignment, and so that the cdata keeps its bytes alive.
        whole = ffi.new("uint64_t[]", (size + 7) // 8)
        ffi.memmove(whole, self._answer[self._offset : self._offset + size], size)
        return _Kept(ffi.cast(f"{name} *", whole), whole)


class _Kept:
    """A struct within bytes that live as long as it does: ``ffi.cast`` keeps nothing alive."""

    def __init__(self, pointer: Any, memory: Any) -> None:
        self._pointer = pointer
        self._memory = memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pointer, name)


def info_caps(answer: bytes, offset: int) -> Iterator[InfoCap]:
    """Yield the capabilities of *answer*, whose chain starts at *offset*; 0 is an empty chain.

    Raises `InfoCapsError` if it leaves the answer or has a loop.
    """
    seen = set()
    while offset:
        if offset in seen:
            raise InfoCapsError(f"comes back to {offset:#x}")
        if offset > len(answer):
            raise InfoCapsError(f"leads to {offset:#x}, outside of {len(answer)} bytes")
        seen.add(offset)
        capability = InfoCap(answer, offset)
        yield capability
        offset = capability.next
