"""The host bridge in the device tree, against Linux's bindings and a kernel's reading."""

from __future__ import annotations

import pytest

from tests.arm64.dt_validate import dtc_warnings, validate
from tests.arm64.test_board import board
from vmm.arm64 import gic, layout, pcie
from vmm.fdt import Node, cells, dumps
from vmm.pci.bar import Space
from vmm.pci.window import memory

HIGH = memory(Space.MEMORY64, 256 << 30, 512 << 30)
NODE = f"/pcie@{layout.PCI_ECAM:x}"


def tree(version: int = 3, *, has_its: bool = True, slots: tuple[int, ...] = (1, 2, 31)) -> Node:
    bridge = pcie.node([*pcie.FIXED, HIGH], slots, has_its=has_its)
    return board(version, has_its=has_its, extra=[bridge])


KINDS = {
    "with ITS": tree(),
    "without ITS": tree(has_its=False),
    "gicv2": tree(2, has_its=False),
    "no devices": tree(slots=()),
}


@pytest.mark.lab  # the bindings are downloaded
@pytest.mark.parametrize("kind", KINDS)
def test_linux_bindings_have_nothing_against_it(kind: str) -> None:
    assert validate(dumps(KINDS[kind])) == []


@pytest.mark.parametrize("kind", KINDS)
def test_dtc_warns_of_nothing(kind: str) -> None:
    assert dtc_warnings(dumps(KINDS[kind])) == ""


def test_configuration_space_is_as_large_as_its_buses() -> None:
    properties = tree().find(NODE).properties
    _, size = cells(properties["reg"], 2)
    first, last = cells(properties["bus-range"])
    assert size == (last - first + 1) << 20


def test_windows_are_described_with_the_space_they_are_in() -> None:
    numbers = cells(tree().find(NODE).properties["ranges"])
    rows = [numbers[at : at + 7] for at in range(0, len(numbers), 7)]
    assert rows == [
        (0x0100_0000, 0, 0, 0, 0x3EFF_0000, 0, 0x1_0000),
        (0x0200_0000, 0, 0x1000_0000, 0, 0x1000_0000, 0, 0x2EFF_0000),
        (0x0300_0000, 64, 0, 64, 0, 128, 0),
    ]


def test_each_slot_has_its_own_interrupt() -> None:
    properties = tree().find(NODE).properties
    numbers = cells(properties["interrupt-map"])
    rows = [numbers[at : at + 10] for at in range(0, len(numbers), 10)]
    spis = []
    for (devfn, *middle, pin, parent, _, _, kind, spi, flags), slot in zip(
        rows, (1, 2, 31), strict=True
    ):
        assert (devfn, middle, pin) == (slot << 11, [0, 0], 1)
        assert (parent, kind, flags) == (gic.PHANDLE, 0, 4), "a level, active high"
        assert spi == pcie.spi(slot)
        spis.append(spi)
    assert len(set(spis)) == 3
    assert cells(properties["interrupt-map-mask"]) == (0xF800, 0, 0, 7)


def test_messages_go_to_the_its_if_there_is_one() -> None:
    assert cells(tree().find(NODE).properties["msi-map"]) == (0, gic.ITS_PHANDLE, 0, 0x1_0000)
    assert "msi-map" not in tree(has_its=False).find(NODE).properties


def test_no_interrupt_is_given_twice() -> None:
    virtio = range(layout.SPI_VIRTIO, layout.SPI_VIRTIO + layout.VIRTIO_SLOTS)
    intx = range(pcie.spi(0), pcie.spi(layout.PCI_SLOTS))
    assert not set(virtio) & set(intx)
    assert intx.stop <= layout.SPI_COUNT
    assert {layout.SPI_UART, layout.SPI_RTC}.isdisjoint({*virtio, *intx})


def test_the_address_map_ends_where_ram_begins() -> None:
    assert layout.PCI_MEMORY + layout.PCI_MEMORY_SIZE == layout.PCI_IO
    assert layout.PCI_IO + layout.PCI_IO_SIZE == layout.PCI_ECAM
    assert layout.PCI_ECAM + layout.PCI_ECAM_SIZE <= layout.RAM
