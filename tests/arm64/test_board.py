"""The board's device tree, against Linux's bindings and what Linux looks for."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from tests.arm64.dt_validate import dtc_warnings, validate
from vmm.address_range import AddressRange
from vmm.arm64 import gic, layout, pcie
from vmm.arm64.board import Board, coherent_memory, device_tree, flash, virtio_mmio, vmgenid
from vmm.fdt import Node, cells, dumps, loads, phandles, strings

MIB = 1 << 20
INITRD = AddressRange(layout.RAM + 64 * MIB, 2 * MIB + 5)


def affinity(cpu: int) -> int:
    """Return the affinity that KVM gives a vCPU: sixteen to a cluster (vcpu reset, sys_regs.c)."""
    return cpu & 15 | cpu >> 4 << 8


def board(
    version: int = 3,
    cpus: int = 1,
    *,
    has_its: bool = True,
    has_pmu: bool = True,
    initrd: AddressRange | None = None,
    extra: list[Node] | None = None,
    numa_nodes: int = 1,
) -> Node:
    return device_tree(
        Board(
            ram=AddressRange(layout.RAM, 512 * MIB),
            mpidrs=[affinity(cpu) for cpu in range(cpus)],
            interrupts=gic.node(version, cpus, has_its=has_its),
            gic_version=version,
            has_pmu=has_pmu,
            cmdline="console=ttyAMA0",
            initrd=initrd,
            kaslr_seed=bytes(range(8)),
            rng_seed=bytes(range(32)),
            extra=extra or [],
            numa_nodes=numa_nodes,
        )
    )


KINDS = {
    "gicv3, 1 CPU": board(),
    "gicv3, 16 CPUs, initrd": board(cpus=16, initrd=INITRD),
    "gicv3, 20 CPUs": board(cpus=20),
    "gicv3 without ITS, without PMU": board(has_its=False, has_pmu=False),
    "gicv2, 1 CPU, initrd": board(2, initrd=INITRD),
    "gicv2, 8 CPUs, without PMU": board(2, 8, has_pmu=False),
    "with coherent device memory": board(
        extra=coherent_memory(
            [AddressRange(0x1_0000_0000, 512 * MIB), AddressRange(0x2_0000_0000, MIB)]
        )
    ),
    "with flash": board(extra=[flash([AddressRange(at * 64 * MIB, 64 * MIB) for at in range(2)])]),
    "with a VM generation ID": board(extra=[vmgenid()]),
    "with virtio devices": board(extra=virtio_mmio(3)),
    "with devices that bring memory": board(
        cpus=2,
        extra=[pcie.node(pcie.FIXED, [1, 2, 31], has_its=True, numa={1: 1, 31: 2})],
        numa_nodes=3,
    ),
}


@pytest.mark.lab  # the bindings are downloaded
@pytest.mark.parametrize("kind", KINDS)
def test_linux_bindings_have_nothing_against_it(kind: str) -> None:
    assert validate(dumps(KINDS[kind])) == []


@pytest.mark.parametrize("kind", KINDS)
def test_dtc_warns_of_nothing(kind: str) -> None:
    assert dtc_warnings(dumps(KINDS[kind])) == ""


def test_the_blob_says_what_the_tree_says() -> None:
    tree = loads(dumps(board(cpus=2, initrd=INITRD)))
    assert strings(tree.find("/psci").properties["method"]) == ["hvc"]
    assert cells(tree.find("/cpus/cpu@1").properties["reg"]) == (1,)
    assert strings(tree.find("/chosen").properties["bootargs"]) == ["console=ttyAMA0"]


def test_the_console_is_where_chosen_says() -> None:
    tree = board()
    (path,) = strings(tree.find("/chosen").properties["stdout-path"])
    uart = tree.find(path)
    assert strings(uart.properties["compatible"]) == ["arm,pl011", "arm,primecell"]
    assert cells(uart.properties["reg"], 2) == (layout.UART, layout.DEVICE_SIZE)
    assert cells(uart.properties["interrupts"]) == (0, layout.SPI_UART, 4)  # SPI, level, high


def test_without_a_command_line_firmware_decides() -> None:
    tree = device_tree(
        Board(
            ram=AddressRange(layout.RAM, MIB),
            mpidrs=[0],
            interrupts=gic.node(3, 1, has_its=True),
            gic_version=3,
            has_pmu=False,
            cmdline=None,
            initrd=None,
            kaslr_seed=bytes(8),
            rng_seed=bytes(32),
        )
    )
    assert "bootargs" not in tree.find("/chosen").properties


def test_the_initrd_ends_at_its_last_byte() -> None:
    chosen = board(initrd=INITRD).find("/chosen").properties
    assert cells(chosen["linux,initrd-start"], 2) == (INITRD.base,)
    assert cells(chosen["linux,initrd-end"], 2) == (INITRD.end,)
    assert "linux,initrd-start" not in board().find("/chosen").properties


@pytest.mark.parametrize(("version", "cpus", "mask"), [(3, 4, 0), (2, 1, 1), (2, 8, 0xFF)])
def test_private_interrupts_name_their_cpus_to_a_gicv2_only(
    version: int, cpus: int, mask: int
) -> None:
    timer = cells(board(version, cpus).find("/timer").properties["interrupts"])
    assert timer[0::3] == (1, 1, 1, 1)
    assert timer[1::3] == (13, 14, 11, 10)  # in the order the binding gives
    assert timer[2::3] == (mask << 8 | 4,) * 4


def test_each_cpu_has_a_redistributor() -> None:
    interrupts = board(cpus=16).find(f"/interrupt-controller@{layout.GIC_DISTRIBUTOR:x}")
    _, _, base, size = cells(interrupts.properties["reg"], 2)
    assert (base, size) == (layout.GICV3_REDISTRIBUTORS, 16 * layout.GICV3_REDISTRIBUTOR_SIZE)


def test_an_affinity_beyond_32_bits_takes_two_cells() -> None:
    tree = device_tree(
        Board(
            ram=AddressRange(layout.RAM, MIB),
            mpidrs=[0, 1 << 32],
            interrupts=gic.node(3, 2, has_its=True),
            gic_version=3,
            has_pmu=False,
            cmdline="",
            initrd=None,
            kaslr_seed=bytes(8),
            rng_seed=b"",
        )
    )
    assert tree.find("/cpus").properties["#address-cells"] == 2
    assert cells(tree.find("/cpus/cpu@100000000").properties["reg"], 2) == (1 << 32,)


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_nodes_share_a_phandle_or_an_address(kind: str) -> None:
    tree = KINDS[kind]
    with_phandle = [node for _, node in tree.walk() if "phandle" in node.properties]
    assert len(phandles(tree)) == len(with_phandle)
    ranges = []
    for node in [*tree.children, *tree.find("/interrupt-controller@8000000").children]:
        if "@" in node.name and "reg" in node.properties:
            numbers = cells(node.properties["reg"], 2)
            assert node.name.partition("@")[2] == f"{numbers[0]:x}"
            ranges += list(zip(numbers[::2], numbers[1::2], strict=True))
    for (base, size), (following, _) in pairwise(sorted(ranges)):
        assert base + size <= following


def test_the_address_map_has_room_for_all_redistributors() -> None:
    last = layout.GICV3_REDISTRIBUTORS_MAX * layout.GICV3_REDISTRIBUTOR_SIZE
    assert layout.GICV3_REDISTRIBUTORS + last <= layout.UART


def test_memory_that_devices_bring_has_numa_nodes_of_its_own() -> None:
    """Linux knows nodes without memory from the distances only (drivers/of/of_numa.c)."""
    tree = KINDS["with devices that bring memory"]
    by_name = {node.name.partition("@")[0]: node for node in tree.children}
    assert by_name["memory"].properties["numa-node-id"] == bytes(4)
    matrix = by_name["distance-map"].properties["distance-matrix"]
    assert isinstance(matrix, bytes)
    cells = struct.unpack(">27I", matrix)
    assert set(cells[0::3]) == {0, 1, 2}
    assert {row[2] for row in zip(*[iter(cells)] * 3, strict=True) if row[0] == row[1]} == {10}
    near = {node.name: node.properties["numa-node-id"] for node in by_name["pcie"].children}
    assert near == {"device@1,0": bytes([0, 0, 0, 1]), "device@1f,0": bytes([0, 0, 0, 2])}
