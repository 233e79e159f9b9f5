"""Virtio devices behind the host bridge: ioeventfds and routes, power cycles, leaks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.pci.pci_bus import Line
from tests.virtio.pci_driver import DOORBELL, FIELDS
from tests.virtio.ring_driver import BASE, BUFFERS, SIZE, Buffer, Memory, SplitDriver
from vmm.arm64 import layout, pcie
from vmm.bus import MmioBus
from vmm.config import MachineConfig
from vmm.config.disk import DiskConfig
from vmm.errors import UserError
from vmm.events import Events
from vmm.fdt import cells
from vmm.kvm.vm import MsiRoute, PinRoute
from vmm.loop import Loop
from vmm.machine.pci_root import PciRoot
from vmm.machine.virtio_devices import VirtioDevices

FUNCTION = layout.PCI_ECAM + (1 << 15)
BAR = layout.PCI_MEMORY
NOTIFY, TABLE = 0x3000, 0x4000


class FakeVm:
    """A VM that records ioeventfds, irqfds and routes."""

    def __init__(self) -> None:
        self.ioeventfds: dict[tuple[int, int], int] = {}
        self.irqfds: dict[int, int] = {}
        self.routes: list[MsiRoute | PinRoute] = []

    def ioeventfd(
        self, address: int, length: int, fd: int, *, datamatch: None, deassign: bool = False
    ) -> None:
        assert datamatch is None, "each queue has an address of its own"
        if deassign:
            assert self.ioeventfds.pop((address, length)) == fd
        else:
            assert (address, length) not in self.ioeventfds
            self.ioeventfds[address, length] = fd

    def irqfd(self, fd: int, gsi: int, *, deassign: bool = False) -> None:
        if deassign:
            assert self.irqfds.pop(fd) == gsi
        else:
            self.irqfds[fd] = gsi

    def set_gsi_routing(self, routes: Sequence[MsiRoute | PinRoute]) -> None:
        self.routes = list(routes)


class Board:
    """The parts of a machine that PCI needs."""

    def __init__(self, loop: Loop, memory: Memory, config: MachineConfig) -> None:
        self.bus, self.loop = MmioBus(), loop
        self.lines: dict[int, Line] = {}
        self.root = PciRoot(self.bus, self._wire, Events())
        try:
            self.devices = VirtioDevices(
                config, memory.guest, self.bus, loop, Events(), root=self.root
            )
        except BaseException:
            self.root.close()
            raise
        self.end = self.root.place(layout.RAM + (1 << 30), 1 << 40)

    def _wire(self, spi: int) -> Line:
        return self.lines.setdefault(spi, Line())

    def power_on(self, *, has_its: bool = True) -> FakeVm:
        made = FakeVm()
        vm: Any = made
        self.devices.connect(vm)
        self.root.connect(vm, has_its=has_its)
        return made

    def power_off(self) -> None:
        self.root.disconnect()
        self.devices.reset()
        self.root.reset()

    def close(self) -> None:
        self.devices.close()
        self.root.close()

    def start(self, ring: SplitDriver) -> None:
        """Bring up the first function's device, with MSI-X."""
        write, common = self.bus.write, BAR
        write(FUNCTION + 0x10, 4, BAR)
        write(FUNCTION + 0x04, 2, 6)
        write(FUNCTION + 0x42, 2, 1 << 15)
        for offset, value in ((0, DOORBELL), (4, 0), (8, 0x55), (12, 0)):
            write(BAR + TABLE + 16 + offset, 4, value)
        areas = zip(("desc", "driver", "device"), ring.areas, strict=True)
        steps: list[tuple[str, int]] = [("device_status", 3), ("driver_feature_select", 1)]
        steps += [("driver_feature", 1), ("device_status", 11), ("queue_size", ring.size)]
        steps += [("queue_msix_vector", 1)]
        steps += [(f"queue_{name}_lo", address) for name, address in areas]
        steps += [("queue_enable", 1), ("device_status", 15)]
        for field, value in steps:
            offset, size = FIELDS[field]
            write(common + offset, size, value)
        assert self.bus.read(common + 0x14, 1) == 15


def config(**more: Any) -> MachineConfig:
    return MachineConfig(image=Path("Image"), rng=True, transport="pci", **more)


@pytest.fixture
def board(loop: Loop, ram: Memory) -> Iterator[Board]:
    board = Board(loop, ram, config())
    yield board
    board.close()


def test_a_device_is_where_the_device_tree_says(board: Board) -> None:
    assert board.devices.nodes() == []
    (node,) = board.root.nodes(has_its=True)
    assert node.name == "pcie@3f000000"
    base, _ = cells(node.properties["reg"], 2)
    assert board.bus.read(base + (1 << 15), 4) == 0x1044_1AF4
    ranges = cells(node.properties["ranges"])
    assert ranges[-7] == 0x0300_0000
    high, low = ranges[-4], ranges[-3]
    assert (high << 32 | low) >= 1 << 32
    assert board.end > high << 32 | low


def test_kvm_does_notifications_and_messages_in_each_power_cycle(
    board: Board, loop: Loop, ram: Memory
) -> None:
    for _ in range(3):
        vm = board.power_on()
        assert vm.ioeventfds == {}
        ring = SplitDriver(ram)
        board.start(ring)
        ((address, length), doorbell) = next(iter(vm.ioeventfds.items()))
        assert (address, length) == (BAR + NOTIFY, 2)
        ((interrupt, gsi),) = vm.irqfds.items()
        (route,) = (route for route in vm.routes if isinstance(route, MsiRoute))
        assert route == MsiRoute(gsi, layout.GITS_TRANSLATER, 0x55, 1 << 3)
        assert gsi >= layout.SPI_COUNT
        identity = ring.add(Buffer(BUFFERS, 64, writable=True))
        os.eventfd_write(doorbell, 1)
        used = ring.areas.device + 2
        loop.run(until=lambda at=used: ram.unpack(at, "H") == (1,))  # type: ignore[misc]
        assert ring.used() == [(identity, 64)]
        assert os.eventfd_read(interrupt) == 1
        assert not board.lines[pcie.spi(1)].level
        board.power_off()
        assert board.bus.read(FUNCTION + 4, 2) == 0
        assert board.bus.find(BAR, 4) is None
        ram.guest.write(BASE, bytes(SIZE // 4))


def test_other_irqfds_keep_their_routes(board: Board, ram: Memory) -> None:
    vm = board.power_on()
    board.start(SplitDriver(ram))
    pins = {route.pin for route in vm.routes if isinstance(route, PinRoute)}
    assert {layout.SPI_VIRTIO, layout.SPI_VIRTIO + 31, pcie.spi(1), pcie.spi(31)} <= pins
    assert all(route.gsi == route.pin for route in vm.routes if isinstance(route, PinRoute))


def test_a_bar_that_moves_takes_its_doorbells_along(board: Board, ram: Memory) -> None:
    vm = board.power_on()
    board.start(SplitDriver(ram))
    board.bus.write(FUNCTION + 0x10, 4, BAR + 0x10_0000)
    assert [address for address, _ in vm.ioeventfds] == [BAR + 0x10_0000 + NOTIFY]
    board.bus.write(FUNCTION + 0x04, 2, 0)
    assert vm.ioeventfds == {}


def test_without_an_its_the_loop_turns_interrupts_into_intx(
    board: Board, loop: Loop, ram: Memory
) -> None:
    vm = board.power_on(has_its=False)
    ring = SplitDriver(ram)
    board.start(ring)
    board.bus.write(FUNCTION + 0x42, 2, 0)
    assert vm.irqfds == {}
    ring.add(Buffer(BUFFERS, 64, writable=True))
    board.bus.write(BAR + NOTIFY, 2, 0)
    line = board.lines[pcie.spi(1)]
    loop.run(until=lambda: line.level)
    assert board.bus.read(BAR + 0x1000, 1) == 1
    assert not line.level


def open_files() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_nothing_is_left_open(loop: Loop, ram: Memory) -> None:
    before = open_files()
    board = Board(loop, ram, config())
    board.power_on()
    board.start(SplitDriver(ram))
    board.power_off()
    board.close()
    board.close()
    assert open_files() == before
    loop.stop()
    loop.run()


def test_a_device_too_many_is_an_error_that_leaves_nothing(
    loop: Loop, ram: Memory, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(512))
    before = open_files()
    disks = tuple(DiskConfig(image, read_only=True) for _ in range(31))
    with pytest.raises(UserError, match="no more than 31 PCI devices"):
        Board(loop, ram, config(disks=disks))
    assert open_files() == before
