"""Hostile drivers over PCI: no order of accesses damages the transport."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pci.pci_bus import MEMORY_ON
from tests.recorded import Recorded
from tests.virtio.mmio_driver import Echo
from tests.virtio.pci_driver import FIELDS, NO_VECTOR, PciDriver
from tests.virtio.ring_driver import BUFFERS, Buffer, Memory, SplitDriver
from vmm.virtio.transport.pci import COMMON, DEVICE, ISR, NOTIFY, PENDING, SIZE, TABLE

REGISTERS = [COMMON + offset for offset, _ in FIELDS.values()]
STATUS = COMMON + FIELDS["device_status"][0]
OFFSETS = [*REGISTERS, *[STATUS] * 4, ISR, DEVICE, DEVICE + 8, NOTIFY, NOTIFY + 4, NOTIFY + 8]
OFFSETS += [TABLE, TABLE + 8, TABLE + 12, TABLE + 28, TABLE + 48, PENDING, SIZE - 8, SIZE - 1]
VALUES = [0, 1, 2, 3, 7, 8, 11, 15, 64, 128, 0x8000, NO_VECTOR, 0xFFFF_FFFF]

accesses = st.tuples(
    st.sampled_from(["bar", "bar", "bar", "config"]),
    st.sampled_from(OFFSETS) | st.integers(0, SIZE - 1),
    st.sampled_from([1, 2, 2, 4, 4, 8]),
    st.sampled_from(VALUES) | st.integers(0, 255),
    st.booleans(),
)


def still_works(driver: PciDriver, memory: Memory) -> None:
    """Check that a correct driver works, whatever came before."""
    driver.bus.host.reset()
    driver.bus.place(driver.base)
    driver.bus.command(MEMORY_ON)
    ring = SplitDriver(memory)
    driver.start(ring.size, ring.areas)
    driver.enable_msix(3)
    assert driver.set_vector(0, 1) == 1
    ring.add(Buffer(BUFFERS, 10), Buffer(BUFFERS + 16, 10, writable=True))
    driver.vectors.sent()
    driver.notify()
    assert [length for _, length in ring.used()] == [10]
    assert driver.vectors.sent() == {101: 1}


@settings(max_examples=200, deadline=None)
@given(st.lists(accesses, max_size=50))
def test_no_order_of_accesses_hurts_the_transport(
    program: list[tuple[str, int, int, int, bool]],
) -> None:
    memory, events = Memory(), Recorded()
    driver = PciDriver(Echo(memory, events))
    for where, offset, size, number, store in program:
        value = number & (1 << 8 * size) - 1
        if where == "config":
            register = offset % 0x110 & -size
            if store:
                driver.bus.store(register, value, size)
            assert 0 <= driver.bus.load(register, size) < 1 << 8 * size
        else:
            if store:
                driver.bus.mmio.write(driver.base + offset, size, value)
            assert 0 <= driver.bus.mmio.read(driver.base + offset, size) < 1 << 8 * size
        driver.turn()
        attached = set(driver.vectors.attached.values())
        assert attached <= {0, 1, 2}
    still_works(driver, memory)
    driver.bus.host.close()
    memory.close()
