"""Guests that write anything anywhere: slots show the device and nothing else of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passthrough.fake_device import (
    BAR0_SIZE,
    BAR2_SIZE,
    EXPRESS,
    MSI,
    MSIX,
    PM,
    TABLE,
    VECTORS,
)
from tests.passthrough.machine_parts import Parts
from vmm._native import lib
from vmm.arm64 import layout
from vmm.vfio.config import COMMAND

if TYPE_CHECKING:
    from vmm.vfio.mapping import RegionMapping

HIGH = 0x1_0000_0000
PMCSR = PM + int(lib.PCI_PM_CTRL)
REGISTERS = [
    COMMAND,
    *range(lib.PCI_BASE_ADDRESS_0, lib.PCI_BASE_ADDRESS_0 + 24, 4),
    lib.PCI_ROM_ADDRESS,
    PMCSR,
    MSI + lib.PCI_MSI_FLAGS,
    MSI + lib.PCI_MSI_ADDRESS_LO,
    MSI + lib.PCI_MSI_MASK_64,
    EXPRESS + lib.PCI_EXP_DEVCTL,
    MSIX + lib.PCI_MSIX_FLAGS,
    MSIX + lib.PCI_MSIX_TABLE,
]
ADDRESSES = [
    0,
    1,
    HIGH,
    HIGH + BAR2_SIZE,
    layout.RAM,
    layout.UART,
    layout.PCI_ECAM,
    layout.PCI_MEMORY,
    layout.GITS_TRANSLATER,
    0xFFFF_FFFF,
    0x8000_0000,
    int(lib.PCI_EXP_DEVCTL_BCR_FLR),
    0xC000,
    2,
    3,
    6,
]
values = st.sampled_from(ADDRESSES) | st.integers(0, 0xFFFF_FFFF)
config = st.tuples(
    st.just("config"),
    st.sampled_from(REGISTERS) | st.integers(0, 1023).map(lambda word: 4 * word),
    st.sampled_from([1, 2, 4]),
    values,
)
table = st.tuples(
    st.just("table"), st.integers(0, 4 * VECTORS + 4).map(lambda word: 4 * word), st.just(4), values
)
place = st.tuples(st.just("place"), st.sampled_from([0, 8]), st.just(4), st.sampled_from(ADDRESSES))
steps = st.lists(
    config | table | place | st.tuples(st.sampled_from(["on", "stop"])), min_size=1, max_size=40
)


def take(parts: Parts, step: tuple[object, ...]) -> None:
    match step:
        case ("config", int(offset), int(size), int(value)):
            parts.write(offset & -size, size, value & (1 << 8 * size) - 1)
            parts.read(offset & -size, size)
        case ("table", int(offset), int(size), int(value)):
            parts.bus.write(HIGH + TABLE + offset, size, value & 0xFFFF_FFFF)
            parts.bus.read(HIGH + TABLE + offset, size)
        case ("place", int(register), int(size), int(value)):
            for at, part in ((0, value), (4, value >> 32 or 1)):
                parts.write(lib.PCI_BASE_ADDRESS_0 + register + at, size, part & 0xFFFF_FFFF)
        case ("on",):
            parts.write(COMMAND, 2, 6)
        case ("stop",):
            parts.function.disconnect()
            parts.slots = None
            parts.vm.slots.clear()
            parts.vm.irqfds.clear()
            parts.root.disconnect()
            parts.root.reset()
            parts.restart()


def inside(mapping: RegionMapping, address: int, size: int) -> bool:
    start = mapping.host_address
    return start <= address and address + size <= start + mapping.size


def check(parts: Parts) -> None:
    """Slots are of the device's memory, in a window, and only while the device answers."""
    mappings = [one for region in parts.device.regions for one in region._mappings]
    for base, size, address in parts.vm.slots.values():
        assert any(inside(mapping, address, size) for mapping in mappings)
        assert any(window.addresses.contains(base, size) for window in parts.root.host.windows)
    if parts.vm.slots:
        assert parts.device.memory_enabled
        assert not parts.device.config.read(PMCSR, 2) & lib.PCI_PM_CTRL_STATE_MASK
        assert sum(size for _, size, _ in parts.vm.slots.values()) <= BAR0_SIZE + BAR2_SIZE
    live = {fd for fd in parts.device.irqs.signalled.values() if fd >= 0}
    assert parts.vm.irqfds.keys() <= live, "what VFIO does not signal has no irqfd"


@given(steps)
@settings(max_examples=200, deadline=None)
def test_nothing_but_the_device_shows(done: list[tuple[object, ...]]) -> None:
    parts = Parts()
    try:
        for step in done:
            take(parts, step)
            check(parts)
        parts.function.lose()
        assert not parts.vm.slots
        assert parts.device.closed
    finally:
        parts.close()
