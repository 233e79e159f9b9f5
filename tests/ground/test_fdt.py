"""Device trees: written as libfdt, dtc and the specification have them."""

from __future__ import annotations

import shutil
import struct
import subprocess
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm import fdt
from vmm.fdt import Node, Value, dumps, loads, u32, u64

TREE = Node(
    "",
    {"compatible": "linux,dummy-virt", "#address-cells": 2, "#size-cells": 2},
    [
        Node("chosen", {"bootargs": "console=ttyAMA0", "stdout-path": "/pl011@9000000"}),
        Node("memory@40000000", {"device_type": "memory", "reg": fdt.reg((0x4000_0000, 64 << 20))}),
        Node("clock", {"#clock-cells": 0, "phandle": 7}),
        Node(
            "pl011@9000000",
            {
                "compatible": ["arm,pl011", "arm,primecell"],
                "clocks": u32(7, 7),
                "dma-coherent": None,
            },
        ),
        Node("pcie@10000000", {}, [Node("gpu@1,0", {"nvidia,gpu-mem-size": u64(0x6000_0000)})]),
    ],
)

DTS = """\
/dts-v1/;

/ {
	compatible = "linux,dummy-virt";
	#address-cells = <0x02>;
	#size-cells = <0x02>;

	chosen {
		bootargs = "console=ttyAMA0";
		stdout-path = "/pl011@9000000";
	};

	memory@40000000 {
		device_type = "memory";
		reg = <0x00 0x40000000 0x00 0x4000000>;
	};

	clock {
		#clock-cells = <0x00>;
		phandle = <0x07>;
	};

	pl011@9000000 {
		compatible = "arm,pl011", "arm,primecell";
		clocks = <0x07 0x07>;
		dma-coherent;
	};

	pcie@10000000 {

		gpu@1,0 {
			nvidia,gpu-mem-size = <0x00 0x60000000>;
		};
	};
};
"""

node_names = st.from_regex(r"[a-z][a-z0-9,._+-]{0,20}(@[0-9a-f]{1,9})?", fullmatch=True)
values = (
    st.none()
    | st.binary(max_size=40)
    | st.integers(0, 2**32 - 1)
    | st.lists(
        st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=9), max_size=3
    )
)
properties = st.dictionaries(
    st.from_regex(r"[#a-z][a-z0-9,._?-]{0,15}", fullmatch=True), values, max_size=5
)


def uniquely_named(children: list[Node]) -> list[Node]:
    return list({child.name: child for child in children}.values())


subtrees = st.recursive(
    st.builds(Node, node_names, properties, st.just(())),
    lambda below: st.builds(
        Node, node_names, properties, st.lists(below, max_size=4).map(uniquely_named)
    ),
    max_leaves=20,
)
roots = st.builds(Node, st.just(""), properties, st.lists(subtrees, max_size=4).map(uniquely_named))


def as_read(node: Node) -> Node:
    """Return *node* as `loads` returns it: every property is bytes."""
    plain: dict[str, Value] = {name: fdt.encode(value) for name, value in node.properties.items()}
    return Node(node.name, plain, [as_read(child) for child in node.children])


@given(roots)
def test_a_tree_comes_back_from_its_blob(root: Node) -> None:
    assert loads(dumps(root)) == as_read(root)


@pytest.mark.skipif(not shutil.which("dtc"), reason="dtc is not installed")
def test_dtc_reads_what_we_write() -> None:
    dtc = ["dtc", "-q", "-I", "dtb", "-O", "dts"]
    read = subprocess.run(dtc, input=dumps(TREE), capture_output=True, check=True)
    # dtc 1.7 (Debian 13) prints a list of strings like this, 1.6 as one string with a \0 in it.
    assert read.stdout.decode().replace("\\0", '", "') == DTS


@pytest.mark.skipif(not shutil.which("dtc"), reason="dtc is not installed")
def test_we_read_what_dtc_writes() -> None:
    dtc = ["dtc", "-q", "-I", "dts", "-O", "dtb"]
    written = subprocess.run(dtc, input=DTS.encode(), capture_output=True, check=True)
    assert loads(written.stdout) == as_read(TREE)


def test_a_blob_is_a_multiple_of_cells_and_says_its_size() -> None:
    blob = dumps(TREE)
    assert blob[:4] == bytes.fromhex("d00dfeed")
    assert int.from_bytes(blob[4:8], "big") == len(blob)
    assert loads(blob + b"what follows a blob") == loads(blob)


def test_a_path_finds_a_node() -> None:
    assert TREE.find("/") is TREE
    assert TREE.find("/pcie@10000000/gpu@1,0").name == "gpu@1,0"
    with pytest.raises(KeyError, match="/pcie@10000000/gpu@2"):
        TREE.find("/pcie@10000000/gpu@2")


def test_inserting_leaves_the_old_tree_alone() -> None:
    gpu = Node("gpu@2,0", {"reg": u32(0x1000, 0, 0, 0, 0)})
    edited = loads(dumps(TREE)).insert("/pcie@10000000", gpu)
    assert [child.name for child in edited.find("/pcie@10000000").children] == [
        "gpu@1,0",
        "gpu@2,0",
    ]
    assert len(TREE.find("/pcie@10000000").children) == 1
    assert loads(dumps(edited)).find("/pcie@10000000/gpu@2,0") == as_read(gpu)


def test_inserting_replaces_a_node_of_the_same_name_in_place() -> None:
    edited = TREE.insert("/", Node("clock"))
    assert [child.name for child in edited.children] == [child.name for child in TREE.children]
    assert edited.find("/clock") == Node("clock")


def test_phandles_are_found() -> None:
    assert fdt.phandles(TREE) == fdt.phandles(loads(dumps(TREE))) == {7: "/clock"}


def test_cells_and_strings_read_properties() -> None:
    memory = loads(dumps(TREE)).find("/memory@40000000")
    assert fdt.cells(memory.properties["reg"], 2) == (0x4000_0000, 64 << 20)
    assert fdt.strings(TREE.find("/pl011@9000000").properties["compatible"]) == [
        "arm,pl011",
        "arm,primecell",
    ]
    with pytest.raises(ValueError, match="6 bytes are no whole number of 4-byte numbers"):
        fdt.cells(b"sixish")


def test_reg_follows_the_parents_cell_counts() -> None:
    assert fdt.reg((1, 2), (3, 4), address_cells=1, size_cells=1) == u32(1, 2, 3, 4)
    assert fdt.reg((1, 0), address_cells=1, size_cells=0) == u32(1)


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        (Node("root"), "root: the root of a device tree has no name"),
        (Node("", {}, [Node("a", {}, [Node("b/c")])]), "/a: 'b/c' is not a name for a node"),
        (Node("", {}, [Node("")]), "/: '' is not a name for a node"),
        (Node("", {"a\0b": None}), r"'a\\x00b' is not a name for a property"),
        (Node("", {"a": 1 << 32}), "0x100000000: not unsigned numbers of 32 bits"),
        (Node("", {"a": -1}), "not unsigned numbers of 32 bits"),
    ],
)
def test_what_has_no_place_in_a_blob_is_refused(tree: Node, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        dumps(tree)


@pytest.mark.parametrize(
    "blob",
    [b"", b"\xd0\x0d\xfe\xed", b"no device tree, but long enough to be one" * 4, dumps(TREE)[:-1]],
    ids=["empty", "magic", "text", "truncated"],
)
def test_what_is_no_blob_is_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match="not a device tree: FDT_ERR_"):
        loads(blob)


def test_a_blob_without_a_root_is_refused() -> None:
    """A structure block that ends at once is a sound one to libfdt."""
    whole = dumps(Node(""))
    start = int.from_bytes(whole[8:12], "big")
    with pytest.raises(ValueError, match="there is no root node"):
        loads(whole[:start] + struct.pack(">I", 9) + whole[start + 4 :])


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_blob_is_read_or_refused(at: int, byte: int) -> None:
    damaged = bytearray(dumps(TREE))
    damaged[at % len(damaged)] = byte
    with suppress(ValueError):
        assert isinstance(loads(damaged), Node)


def test_a_tree_deeper_than_linux_reads_is_refused() -> None:
    tree = Node("n")
    for _ in range(fdt.MAX_DEPTH):
        tree = Node("n", {}, [tree])
    with pytest.raises(ValueError, match="deeper than the 64 levels"):
        loads(dumps(Node("", {}, [tree])))
