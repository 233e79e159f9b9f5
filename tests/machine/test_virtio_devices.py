"""Virtio devices in virtio-mmio slots: addresses, interrupts, ioeventfds, and resets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.virtio.ring_driver import BASE, BUFFERS, SIZE, Buffer, Memory, SplitDriver
from vmm.arm64 import layout
from vmm.bus import MmioBus
from vmm.config import MachineConfig
from vmm.config.pmem import PmemConfig
from vmm.events import Events
from vmm.fdt import cells
from vmm.kvm.mmio_fastpath import InterruptAck, InterruptStatus
from vmm.loop import Loop
from vmm.machine.virtio_devices import VirtioDevices
from vmm.virtio.pmem_file import ALIGNMENT, PmemFile

SLOT = 0x0A00_0000
STATUS, NOTIFY, INTERRUPT_STATUS, ACK = 0x70, 0x50, 0x60, 0x64


class FakeVm:
    """Record the calls."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.doorbells: list[int] = []

    def ioeventfd(self, address: int, length: int, fd: int, *, datamatch: int) -> None:
        self.asked.append(("ioeventfd", address, length, datamatch))
        self.doorbells.append(fd)

    def irqfd(self, fd: int, gsi: int) -> None:
        self.asked.append(("irqfd", gsi))
        self.interrupt = fd


@pytest.fixture
def bus() -> MmioBus:
    return MmioBus()


@pytest.fixture
def devices(bus: MmioBus, loop: Loop, ram: Memory) -> Iterator[VirtioDevices]:
    config = MachineConfig(image=Path("Image"), rng=True)
    with VirtioDevices(config, ram.guest, bus, loop, Events()) as devices:
        yield devices


def test_a_device_is_where_the_device_tree_says(devices: VirtioDevices, bus: MmioBus) -> None:
    (node,) = devices.nodes()
    assert node.name == "virtio@a000000"
    assert node.properties["compatible"] == "virtio,mmio"
    assert cells(node.properties["reg"]) == (0, SLOT, 0, 0x200)
    assert cells(node.properties["interrupts"]) == (0, 16, 1), "SPI 16, a rising edge"
    assert bus.read(SLOT, 4).to_bytes(4, "little") == b"virt"
    assert bus.read(SLOT + 8, 4) == 4


def start(bus: MmioBus, ring: SplitDriver) -> None:
    """Bring up the device in slot 0, by its registers."""
    stores = [(STATUS, 0), (STATUS, 1), (STATUS, 3), (0x24, 1), (0x20, 1), (STATUS, 11)]
    stores += [(0x30, 0), (0x38, ring.size)]
    for offset, address in zip((0x80, 0x90, 0xA0), ring.areas, strict=True):
        stores.append((offset, address))
    stores += [(0x44, 1), (STATUS, 15)]
    for offset, value in stores:
        bus.write(SLOT + offset, 4, value)
    assert bus.read(SLOT + STATUS, 4) == 15


def test_kvm_does_notifications_and_interrupts_in_each_power_cycle(
    devices: VirtioDevices, bus: MmioBus, loop: Loop, ram: Memory
) -> None:
    ring = SplitDriver(ram)
    used = partial(ram.unpack, ring.areas.device + 2, "H")
    for _ in range(3):
        vm: Any = FakeVm()
        devices.connect(vm)
        assert vm.asked == [
            ("ioeventfd", SLOT + NOTIFY, 4, 0),
            ("ioeventfd", SLOT + ACK, 4, 1),
            ("irqfd", 16),
        ]
        ring = SplitDriver(ram)
        start(bus, ring)
        identity = ring.add(Buffer(BUFFERS, 64, writable=True))
        os.eventfd_write(vm.doorbells[0], 1)
        loop.run(until=lambda: used() == (1,))
        assert ring.used() == [(identity, 64)]
        assert os.eventfd_read(vm.interrupt) == 1
        devices.reset()
        assert bus.read(SLOT + STATUS, 4) == 0
        ram.guest.write(BASE, bytes(SIZE // 4))


def test_the_run_loop_answers_for_each_interrupt(devices: VirtioDevices) -> None:
    status, acknowledge = devices.answers()
    assert isinstance(status, InterruptStatus)
    assert isinstance(acknowledge, InterruptAck)
    assert (status.address, acknowledge.address) == (SLOT + INTERRUPT_STATUS, SLOT + ACK)
    assert status.interrupt == acknowledge.interrupt


def open_files() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("allocated", [True, False])
def test_a_file_that_may_lack_room_is_said(
    bus: MmioBus, loop: Loop, ram: Memory, tmp_path: Path, *, allocated: bool
) -> None:
    with PmemFile(PmemConfig(tmp_path / "p", size=ALIGNMENT)) as file:
        file.allocated = allocated
        config = MachineConfig(image=Path("Image"))
        devices = VirtioDevices(config, ram.guest, bus, loop, Events(), pmems=[file])
        with devices:
            said = [line for line in devices.notices if line.startswith(f"--pmem {tmp_path}/p: ")]
            assert bool(said) != allocated


def test_closed_devices_leave_nothing_in_the_loop(bus: MmioBus, loop: Loop, ram: Memory) -> None:
    before = open_files()
    config = MachineConfig(image=Path("Image"), rng=True)
    devices = VirtioDevices(config, ram.guest, bus, loop, Events())
    devices.close()
    devices.close()
    assert open_files() == before
    loop.stop()
    loop.run()


def test_the_slots_are_beside_everything_else() -> None:
    windows = sorted((each.base, each.end) for each in layout.REGISTERS.values())
    ends = [end for _, end in windows]
    assert all(end <= base for end, (base, _) in zip(ends, windows[1:], strict=False))
    assert layout.virtio(layout.VIRTIO_SLOTS) <= layout.RAM
    assert layout.SPI_VIRTIO + layout.VIRTIO_SLOTS <= layout.SPI_COUNT
