"""Write recorded calls as a C program that makes them again, in the style of KVM's selftests.

The program needs nothing but libc and <linux/kvm.h>, says in TAP whether each answer is what it
was, and ends with 0 if all are, 1 if one differs, and 4 (KSFT_SKIP) without /dev/kvm.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmm._native import ffi
from vmm.uapi.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO

    from vmm.coherence.vma import Vma
    from vmm.uapi.recorder import Call

TEMPLATE: Final = Path(__file__).with_name("again.c.in").read_text()
KERNEL: Final = f"Linux {os.uname().release}"
"""Both are read now: a sealed process opens nothing."""
MARK: Final = re.compile(r"@([A-Z_]+)@")

DEVICES: Final = ("/sys/", "/dev/dax")
"""Beginnings of the paths that are mapped again: devices. A user's file is not touched."""

POINTERS: Final = {
    "kvm_one_reg": "addr",
    "kvm_device_attr": "addr",
    "reg_mask_range": "addr",
    "kvm_dirty_log": "dirty_bitmap",
}
"""Members that are addresses, by their structs."""
MEMORY: Final = "userspace_addr"
EVENTFDS: Final = {"kvm_irqfd": ("fd", "resamplefd"), "kvm_ioeventfd": ("fd",)}
NEWER: Final = ("kvm_userspace_memory_region2", "kvm_create_guest_memfd", "reg_mask_range")
"""Structs that the program declares itself: headers in use lack them."""


@contextmanager
def recorded(file: TextIO, title: str, structs: str = "") -> Iterator[None]:
    """Record the calls inside, and write the program to *file*, also after an error."""
    with Recorder() as recorder:
        try:
            yield
        finally:
            file.write(text(recorder.calls, title, structs=structs, left_out=recorder.left_out))
            file.flush()


def text(calls: Sequence[Call], title: str, *, structs: str = "", left_out: int = 0) -> str:
    """Return a C program that makes *calls* again.

    *structs* are a profile's declarations, for calls with their types; *left_out* calls came after
    these.
    """
    made = [call.makes for call in calls if call.makes]
    newer = {call.type.cname: _declaration(call) for call in calls if _is_newer(call)}
    numbers = dict.fromkeys((call.name, call.number) for call in calls)
    marks = {
        "TITLE": title.replace("*/", "* /"),
        "KERNEL": KERNEL,
        "LEFT_OUT": f" {left_out} more calls are left out." if left_out else "",
        "DECLARATIONS": f"{structs.strip()}\n"
        + "".join(newer.values())
        + "".join(map(_define, numbers)),
        "DESCRIPTORS": "".join(f"\tint {name} = -1;\n" for name in made),
        "CALLS": "".join(_Program(calls).blocks()) + "".join(f"\t(void){name};\n" for name in made),
    }
    return MARK.sub(lambda mark: marks[mark[1]].strip("\n"), TEMPLATE)


def _define(call: tuple[str, int]) -> str:
    name, number = call
    return f"#ifndef {name}\n#define {name} {number:#x}UL\n#endif\n"


def _is_newer(call: Call) -> bool:
    return call.type is not None and str(call.type.cname).removeprefix("struct ") in NEWER


class _Program:
    """The statements for calls."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._mappings: dict[Vma, str] = {}

    def blocks(self) -> Iterator[str]:
        """Yield the statements of each call."""
        for call in self._calls:
            if not call.on:
                yield f"\t/* {call.name} on a descriptor from before the recording: left out */\n"
                continue
            if call.mapping is not None and call.mapping not in self._mappings:
                yield self._map(call.mapping)
            yield self._block(call)

    def _map(self, mapping: Vma) -> str:
        name = self._mappings[mapping] = f"memory{len(self._mappings)}"
        is_device = mapping.name.startswith(DEVICES)
        path = _quoted(mapping.name) if is_device else "NULL"
        said = "" if is_device or not mapping.name else f"\t/* it was {_comment(mapping.name)} */\n"
        size, offset = mapping.addresses.size, mapping.offset if is_device else 0
        writable = int("w" in mapping.permissions or not is_device)
        where = f"{path}, {size:#x}, {offset:#x}, {writable}"
        return f"\n{said}\tunsigned char *{name} = memory({where});\n"

    def _block(self, call: Call) -> str:
        what = f'"{call.name} on {call.on}"'
        expected = f"-{errno.errorcode[-call.result]}" if call.result < 0 else str(call.result)
        makes = int(bool(call.makes))
        if isinstance(call.argument, int):
            made = f"{call.makes} = " if call.makes else ""
            return (
                f"\t{made}again({call.on}, {call.name}, {call.argument:#x}, {what}, "
                f"{expected}, {makes});\n"
            )
        lines = [*self._declared(call)]
        is_device = call.makes.startswith("device")
        made = f"{call.makes} = " if call.makes and not is_device else ""
        pointer = "(unsigned long)&argument"  # of an array, too
        lines.append(f"{made}again({call.on}, {call.name}, {pointer}, {what},")
        lines.append(f"      {expected}, {0 if is_device else makes});")
        if is_device:
            lines.append(f"{call.makes} = argument.fd;")
        body = "".join(f"\t\t{line}\n" for line in lines)
        return f"\t{{\n{body}\t}}\n"

    def _declared(self, call: Call) -> Iterator[str]:
        """Yield the lines that declare a call's argument."""
        assert isinstance(call.argument, bytes)
        if call.pointed is not None:
            yield f"unsigned char pointed[] __attribute__((aligned(16))) = {_bytes(call.pointed)};"
        tag = str(call.type.cname).removeprefix("struct ")
        values = _members(call.type, call.argument)
        if values is None:
            yield f"/* {call.type.cname} */"
            data = _bytes(call.argument)
            yield f"unsigned char argument[] __attribute__((aligned(16))) = {data};"
            return
        yield f"struct {tag} argument = {{"
        for name, value in values.items():
            if shown := self._value(call, tag, name, value):
                yield f"\t.{name} = {shown},"
        yield "};"

    def _value(self, call: Call, tag: str, name: str, value: int | list[int]) -> str:
        """Return a member's value as C; empty: it is 0, which C says without words."""
        if isinstance(value, list):
            return f"{{ {', '.join(map(_number, value))} }}" if any(value) else ""
        if name == MEMORY and call.mapping is not None:
            offset = value - call.mapping.addresses.base
            return f"(uintptr_t)({self._mappings[call.mapping]} + {offset:#x})"
        if POINTERS.get(tag) == name and value:
            return "(uintptr_t)room" if call.pointed is None else "(uintptr_t)pointed"
        if name in EVENTFDS.get(tag, ()) and (name == "fd" or value):
            return "eventfd(0, EFD_NONBLOCK)"
        if name == "guest_memfd" and value:
            made = [each.makes for each in self._calls if each.makes.startswith("guest_memfd")]
            return made[-1] if made else "-1"
        return _number(value) if value else ""


def _number(value: int) -> str:
    return f"{value:#x}" if value > 9 else str(value)


def _members(kind: Any, data: bytes) -> dict[str, int | list[int]] | None:
    """Return the members of struct type *kind* in *data*; None: not all are integers."""
    if kind.kind != "struct":
        return None
    found: dict[str, int | list[int]] = {}
    for name, each in kind.fields:
        size = ffi.sizeof(each.type) if each.type.kind != "array" or each.type.length else 0
        piece = data[each.offset : each.offset + size]
        if each.type.kind in ("primitive", "pointer") and each.bitsize < 0:
            found[name] = _int(each.type, piece)
        elif each.type.kind == "array" and size and each.type.item.kind == "primitive":
            step = ffi.sizeof(each.type.item)
            parts = (piece[at : at + step] for at in range(0, size, step))
            found[name] = [_int(each.type.item, part) for part in parts]
        else:
            return None
    return found


def _int(kind: Any, data: bytes) -> int:
    is_signed = kind.kind == "primitive" and int(ffi.cast(kind, -1)) < 0
    return int.from_bytes(data, "little", signed=is_signed)


def _declaration(call: Call) -> str:
    """Return C's declaration of the struct of *call*, for headers that lack it."""
    lines, end = [], 0
    for name, each in call.type.fields:
        base, count = each.type, ""
        if base.kind == "array":
            base, count = base.item, f"[{base.length}]"
        lines.append(f"\t__u{8 * ffi.sizeof(base)} {name}{count};\n")
        end = each.offset + ffi.sizeof(each.type)
    if rest := ffi.sizeof(call.type) - end:
        lines.append(f"\t__u8 rest[{rest}];\n")
    return f"#ifndef {call.name}\n{call.type.cname} {{\n{''.join(lines)}}};\n#endif\n"


def _bytes(data: bytes) -> str:
    """Return *data* as C's initializer; zeroes at its end are left to the array's size."""
    return "{ " + ", ".join(f"{each:#x}" for each in data) + " }"


def _quoted(path: str) -> str:
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _comment(said: str) -> str:
    return said.replace("*/", "* /")
