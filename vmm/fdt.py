r"""Flattened device trees: a tree of `Node` values, and its binary form, through libfdt.

    Node("", {"compatible": "linux,dummy-virt"}, [Node("chosen", {"bootargs": "quiet"})])
       |  dumps                                                              ^
       v                                                                     |  loads
    b"\xd0\x0d\xfe\xed..."   the blob: Devicetree Specification v0.4, chapter 5

Trees are immutable values: `Node.insert` returns a new one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from vmm._native import ffi, lib

Value = str | int | bytes | Sequence[str] | None
"""A property: a string, one 32-bit cell, bytes as they are, a list of strings, or empty."""

MAX_DEPTH = 64
"""Levels of nodes that Linux reads (drivers/of/fdt.c, FDT_MAX_DEPTH)."""

# Devicetree Specification v0.4, sections 2.2.1 and 2.2.4.1. Lengths are not checked: trees in the
# wild exceed the 31 characters it allows, and no reader minds.
_NODE_NAME = re.compile(r"[0-9A-Za-z,._+-]+(@[0-9A-Za-z,._+-]+)?")
_PROPERTY_NAME = re.compile(r"[0-9A-Za-z,._+?#-]+")


class Node(NamedTuple):
    """A node: its name with unit address, its properties, and the nodes below it.

    The root's name is empty. Nodes that `loads` returns have bytes for all properties, because a
    blob has no types; read them with `cells` and `strings`.
    """

    name: str
    properties: Mapping[str, Value] = MappingProxyType({})
    children: Sequence[Node] = ()

    def find(self, path: str) -> Node:
        """Return the node at *path*, for instance ``/cpus/cpu@0``. Raises KeyError."""
        node = self
        for name in filter(None, path.split("/")):
            for child in node.children:
                if child.name == name:
                    node = child
                    break
            else:
                raise KeyError(path)
        return node

    def insert(self, path: str, new: Node) -> Node:
        """Return this tree with *new* as the last child of the node at *path*.

        A child of the same name is replaced at its position. Raises KeyError.
        """
        head, _, rest = path.strip("/").partition("/")
        if head:
            new = self.find(head).insert(rest, new)
        names = [child.name for child in self.children]
        at = names.index(new.name) if new.name in names else len(names)
        return self._replace(children=[*self.children[:at], new, *self.children[at + 1 :]])

    def walk(self, path: str = "/") -> Iterator[tuple[str, Node]]:
        """Yield this node and every node below it, each with its path."""
        yield path, self
        for child in self.children:
            yield from child.walk(f"{path.rstrip('/')}/{child.name}")


def u32(*cells: int) -> bytes:
    """Return big-endian 32-bit cells. Raises ValueError for a number that does not fit."""
    return _pack(4, cells)


def u64(*numbers: int) -> bytes:
    """Return big-endian 64-bit numbers, two cells each. Raises ValueError as `u32` does."""
    return _pack(8, numbers)


def reg(*ranges: tuple[int, int], address_cells: int = 2, size_cells: int = 2) -> bytes:
    """Return the value of ``reg`` for (address, size) *ranges*, in bytes.

    The cell counts are the *parent's* ``#address-cells`` and ``#size-cells``.
    """
    return b"".join(
        _pack(4 * address_cells, [address]) + _pack(4 * size_cells, [size])
        for address, size in ranges
    )


def cells(value: Value, width: int = 1) -> tuple[int, ...]:
    """Decode a property as numbers of *width* cells. Raises ValueError if bytes are left over."""
    data, step = encode(value), 4 * width
    if len(data) % step:
        raise ValueError(f"{len(data)} bytes are no whole number of {step}-byte numbers")
    return tuple(int.from_bytes(data[at : at + step], "big") for at in range(0, len(data), step))


def strings(value: Value) -> list[str]:
    """Decode a property as a list of strings."""
    return encode(value).decode().split("\0")[:-1]


def phandles(root: Node) -> dict[int, str]:
    """Return the path of the node that each phandle names."""
    return {
        cells(node.properties["phandle"])[0]: path
        for path, node in root.walk()
        if "phandle" in node.properties
    }


def encode(value: Value) -> bytes:
    """Return the bytes of a property. Raises ValueError for a number that does not fit a cell."""
    match value:
        case None:
            return b""
        case bytes():
            return value
        case int():
            return u32(value)
        case str():
            return value.encode() + b"\0"
        case _:
            return b"".join(text.encode() + b"\0" for text in value)


def dumps(root: Node) -> bytes:
    """Return the blob for *root*. Raises ValueError for names and values that it cannot hold."""
    if root.name:
        raise ValueError(f"{root.name}: the root of a device tree has no name")
    size = 64 + _bound(root)
    blob = ffi.new("char[]", size)
    _check(lib.fdt_create(blob, size), "a new tree")
    _check(lib.fdt_finish_reservemap(blob), "a new tree")
    _write(blob, root, "/")
    _check(lib.fdt_finish(blob), "the end of the tree")
    total = int.from_bytes(ffi.buffer(blob, 8)[4:8], "big")
    return bytes(ffi.buffer(blob, total))


def loads(data: bytes | bytearray | memoryview) -> Node:
    """Return the tree in a blob. Raises ValueError for anything but a well-formed blob."""
    # A copy, because libfdt wants its blob aligned to 8 bytes. What follows the blob is ignored.
    blob = ffi.new("char[]", bytes(data))
    _check(lib.fdt_check_full(blob, len(data)), "not a device tree")
    if _check(lib.fdt_num_mem_rsv(blob), "memory reservations"):
        raise ValueError("memory reservations have no place in a tree of nodes")
    depth = ffi.new("int *", -1)
    open_nodes: list[tuple[Node, list[Node]]] = []  # from the root to the present node
    top: list[Node] = []
    at = lib.fdt_next_node(blob, -1, depth)
    while at >= 0 and depth[0] >= 0:  # libfdt steps out of the root at its end
        if depth[0] >= MAX_DEPTH:
            raise ValueError(f"nodes nest deeper than the {MAX_DEPTH} levels that Linux reads")
        del open_nodes[depth[0] :]
        children: list[Node] = []
        node = Node(
            ffi.string(lib.fdt_get_name(blob, at, ffi.NULL)).decode(), _read(blob, at), children
        )
        (open_nodes[-1][1] if open_nodes else top).append(node)
        open_nodes.append((node, children))
        at = lib.fdt_next_node(blob, at, depth)
    if not top:
        raise ValueError("not a device tree: there is no root node")
    return top[0]


def _pack(width: int, numbers: Sequence[int]) -> bytes:
    try:
        return b"".join(number.to_bytes(width, "big") for number in numbers)
    except OverflowError as error:
        wrong = ", ".join(hex(number) for number in numbers)
        raise ValueError(f"{wrong}: not unsigned numbers of {8 * width} bits") from error


def _bound(node: Node) -> int:
    """Return an upper bound of *node*'s bytes in the blob: tags, padding and strings."""
    size = 16 + len(node.name)
    for name, value in node.properties.items():
        size += 20 + len(name) + len(encode(value))
    return size + sum(map(_bound, node.children))


def _write(blob: Any, node: Node, path: str) -> None:
    _check(lib.fdt_begin_node(blob, node.name.encode()), path)
    for name, value in node.properties.items():
        if not _PROPERTY_NAME.fullmatch(name):
            raise ValueError(f"{path}: {name!r} is not a name for a property")
        data = encode(value)
        _check(lib.fdt_property(blob, name.encode(), data, len(data)), f"{path}: {name}")
    for child in node.children:
        if not _NODE_NAME.fullmatch(child.name):
            raise ValueError(f"{path}: {child.name!r} is not a name for a node")
        _write(blob, child, f"{path.rstrip('/')}/{child.name}")
    _check(lib.fdt_end_node(blob), path)


def _read(blob: Any, node: int) -> dict[str, Value]:
    properties: dict[str, Value] = {}
    name, size = ffi.new("char const **"), ffi.new("int *")
    at = lib.fdt_first_property_offset(blob, node)
    while at >= 0:
        data = lib.fdt_getprop_by_offset(blob, at, name, size)
        properties[ffi.string(name[0]).decode()] = bytes(ffi.buffer(data, size[0]))
        at = lib.fdt_next_property_offset(blob, at)
    return properties


def _check(result: int, what: str) -> int:
    """Return libfdt's *result*. Raises ValueError if it is an error."""
    if result < 0:
        raise ValueError(f"{what}: {ffi.string(lib.fdt_strerror(result)).decode()}")
    return result
