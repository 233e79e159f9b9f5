"""The virtio-pci transport, as a driver sees it (VIRTIO 1.2, 4.1)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pci.pci_bus import EXPRESS, INTX_OFF, MASTER, MEMORY_ON, MSIX, POWER
from tests.recorded import Recorded
from tests.virtio.driver import echo_once, start
from tests.virtio.mmio_driver import Echo
from tests.virtio.pci_driver import (
    ACCESS,
    COMMON,
    CONFIG,
    DEVICE,
    FIELDS,
    ISR,
    NO_VECTOR,
    NOTIFY,
    USED,
    VENDOR_CAPABILITY,
    PciDriver,
)
from tests.virtio.ring_driver import BASE, Memory, PackedDriver, SplitDriver
from vmm.virtio import device as virtio
from vmm.virtio import status
from vmm.virtio.queue import Areas

A, D, OK, LIVE = status.ACKNOWLEDGE, status.DRIVER, status.FEATURES_OK, status.DRIVER_OK


@pytest.fixture
def driver(memory: Memory, events: Recorded) -> Iterator[PciDriver]:
    driver = PciDriver(Echo(memory, events))
    yield driver
    driver.bus.host.close()


# --- what it looks like -------------------------------------------------------------------------


def test_it_is_a_modern_virtio_device(driver: PciDriver) -> None:
    assert driver.bus.load(0) == 0x1040 + 42 << 16 | 0x1AF4
    assert driver.bus.load(8, 1) >= 1, "4.1.2.1: non-transitional"
    assert driver.bus.load(0x2E, 2) >= 0x40


def test_its_structures_do_not_overlap_and_are_in_the_bar(driver: PciDriver) -> None:
    kinds = [kind for kind, _ in driver.bus.capability_list()]
    assert sorted(kinds) == sorted([MSIX, POWER, EXPRESS, *[VENDOR_CAPABILITY] * 5])
    assert set(driver.parts) == {COMMON, ISR, DEVICE, NOTIFY, ACCESS}
    size = driver.bus.size_of(0)
    places = [driver.parts[kind] for kind in (COMMON, ISR, DEVICE, NOTIFY)]
    table, pba = (driver.bus.load(driver.msix_at + at) for at in (4, 8))
    assert table & 7 == pba & 7 == 0
    ranges = sorted([*places, (table, 16 * 3), (pba, 8)])
    ends = [offset + length for offset, length in ranges]
    assert all(end <= offset for end, (offset, _) in zip(ends, ranges[1:], strict=False))
    assert ends[-1] <= size
    assert driver.multiplier >= 2
    assert driver.parts[COMMON][1] >= FIELDS["queue_reset"][0] + 2
    for (offset, _), alignment in zip(places, (4, 1, 4, 2), strict=True):
        assert offset % alignment == 0


def test_there_is_a_vector_for_each_queue_and_one_for_the_configuration(driver: PciDriver) -> None:
    assert driver.bus.load(driver.msix_at + 2, 2) + 1 == 3


# --- common configuration -----------------------------------------------------------------------


def test_it_offers_all_features_in_words_of_32(driver: PciDriver) -> None:
    assert driver.offered() == 1 << 5 | 1 << 28 | 1 << 29 | 1 << 32 | 1 << 34 | 1 << 40
    driver.store("device_feature_select", 0xFFFF_FFFF)
    assert driver.load("device_feature") == 0
    driver.store("driver_feature_select", 0xFFFF_FFFF)
    driver.store("driver_feature", 1)
    assert driver.load("driver_feature") == 0


def test_what_the_driver_wrote_reads_back(driver: PciDriver) -> None:
    driver.store("device_feature_select", 1)
    assert driver.load("device_feature_select") == 1
    driver.accept(1 << 5 | 1 << 32)
    assert driver.load("driver_feature") == 1
    driver.store("driver_feature_select", 0)
    assert driver.load("driver_feature") == 1 << 5
    driver.store("queue_select", 1)
    driver.store("queue_size", 4)
    driver.store("queue_desc_hi", 0x1234)
    driver.store("queue_device_lo", 0x5678)
    assert driver.load("queue_select") == 1
    assert driver.load("queue_size") == 4
    assert driver.load("queue_desc_hi") == 0x1234
    assert driver.load("queue_device_lo") == 0x5678
    assert driver.load("queue_driver_lo") == 0
    driver.store("device_status", 0)
    assert driver.load("queue_select") == driver.load("device_feature_select") == 0
    driver.store("queue_select", 1)
    assert driver.load("queue_size") == 16
    assert driver.load("queue_desc_hi") == 0


def test_queues_that_are_not_there_have_no_size(driver: PciDriver) -> None:
    assert driver.load("num_queues") == 2
    sizes = []
    for index in (0, 1, 2, 0xFFFF):
        driver.store("queue_select", index)
        sizes.append(driver.load("queue_size"))
    assert sizes == [8, 16, 0, 0]
    for field in FIELDS:
        if field.startswith("queue_") and field != "queue_select":
            driver.store(field, 1)
            assert driver.load(field) in (0, NO_VECTOR)


def test_fields_have_one_width(driver: PciDriver) -> None:
    for field, (offset, size) in FIELDS.items():
        address = driver.address(COMMON, offset)
        for width in {1, 2, 4, 8} - {size}:
            if (offset, width) not in FIELDS.values():
                assert driver.bus.mmio.read(address, width) == 0, field
                driver.bus.mmio.write(address, width, 1)
    assert driver.load("device_status") == 0


def test_the_configuration_is_read_in_any_size(driver: PciDriver) -> None:
    assert driver.config(0, 1) == 1
    assert driver.config(1, 2) == 0x0302
    assert driver.config(8, 8) == 0x0A09
    driver.bus.mmio.write(driver.address(DEVICE, 2), 2, 0xABCD)
    assert driver.device.written == [(2, b"\xcd\xab")]
    driver.device.generation = 0x1FF
    assert driver.load("config_generation") == 0xFF


# --- queues -------------------------------------------------------------------------------------


def test_a_queue_works(driver: PciDriver, ring: SplitDriver | PackedDriver) -> None:
    start(driver, ring)
    for _ in range(20):
        echo_once(driver, ring)
        assert driver.intx()
        assert driver.isr() == USED
        assert not driver.intx()
        assert driver.isr() == 0


def test_no_interrupt_comes_that_the_driver_does_not_want(
    driver: PciDriver, ring: SplitDriver | PackedDriver
) -> None:
    start(driver, ring)
    ring.suppress()
    echo_once(driver, ring)
    assert not driver.intx()


def test_an_enabled_queue_stays_enabled_and_as_it_is(driver: PciDriver, memory: Memory) -> None:
    driver.negotiate()
    ring = SplitDriver(memory)
    driver.set_queue(0, 8, ring.areas)
    before = driver.device.slots[0].queue
    driver.store("queue_enable", 0)
    driver.set_queue(0, 4, Areas(0, 0, 0))
    assert driver.device.slots[0].queue is before
    assert driver.device.slots[0].areas == ring.areas


def test_no_queue_is_enabled_before_features_are_agreed_upon(driver: PciDriver) -> None:
    driver.store("device_status", A | D)
    assert driver.set_queue(0, 8, Areas(BASE, BASE + 0x8000, BASE + 0xC000)) == 0


def test_a_single_queue_can_be_reset_and_set_up_anew(driver: PciDriver, memory: Memory) -> None:
    start(driver, SplitDriver(memory), virtio.F_RING_RESET)
    driver.enable_msix(3)
    assert driver.set_vector(0, 1) == 1
    driver.store("queue_reset", 1)
    assert driver.load("queue_reset") == driver.load("queue_enable") == 0
    assert driver.load("queue_msix_vector") == NO_VECTOR
    fresh = SplitDriver(memory, size=4, at=BASE + 0x1_0000)
    assert driver.set_queue(0, fresh.size, fresh.areas) == 1
    echo_once(driver, fresh)
    assert driver.device.calls[-3:] == ["started 0", "stopped 0", "started 0"]


def test_a_queue_is_not_reset_unless_that_was_agreed_upon(
    driver: PciDriver, memory: Memory
) -> None:
    start(driver, SplitDriver(memory))
    driver.store("queue_reset", 1)
    assert driver.load("queue_enable") == 1


def test_each_queue_has_its_own_notification_address(driver: PciDriver, memory: Memory) -> None:
    first, second = SplitDriver(memory), SplitDriver(memory, size=16, at=BASE + 0x1_0000)
    driver.negotiate(virtio.F_INDIRECT_DESC)
    driver.set_queue(0, first.size, first.areas)
    driver.set_queue(1, second.size, second.areas)
    driver.add_status(LIVE)
    echo_once(driver, second, 1)
    echo_once(driver, first, 0)
    before = [slot.doorbell.fileno() for slot in driver.device.slots]
    bells = driver.transport.ioeventfds()
    assert [bell.fd for bell in bells] == before
    for index, bell in enumerate(bells):
        driver.store("queue_select", index)
        offset = driver.load("queue_notify_off") * driver.multiplier
        assert bell.offset == driver.parts[NOTIFY][0] + offset
        assert (bell.width, bell.datamatch) == (2, None)
    driver.bus.mmio.write(driver.address(NOTIFY, 1), 2, 0)
    driver.bus.mmio.write(driver.address(NOTIFY, 0x800), 2, 0)
    assert driver.bus.mmio.read(driver.address(NOTIFY), 2) == 0


# --- interrupts ---------------------------------------------------------------------------------


def test_each_queue_has_the_vector_it_was_given(driver: PciDriver, memory: Memory) -> None:
    first, second = SplitDriver(memory), SplitDriver(memory, size=16, at=BASE + 0x1_0000)
    driver.negotiate(virtio.F_INDIRECT_DESC)
    driver.enable_msix(3)
    driver.store("config_msix_vector", 0)
    assert driver.load("config_msix_vector") == 0
    for index, ring in enumerate((first, second)):
        assert driver.set_vector(index, index + 1) == index + 1
        driver.set_queue(index, ring.size, ring.areas)
    driver.add_status(LIVE)
    echo_once(driver, second, 1)
    assert driver.vectors.sent() == {102: 1}
    echo_once(driver, first, 0)
    assert driver.vectors.sent() == {101: 1}
    driver.device.config_changed()
    driver.turn()
    assert driver.vectors.sent() == {100: 1}
    assert not driver.intx()


def test_queues_may_share_a_vector_and_change_it_while_they_work(
    driver: PciDriver, memory: Memory
) -> None:
    ring = SplitDriver(memory)
    start(driver, ring)
    driver.enable_msix(3)
    driver.set_vector(0, 2)
    driver.set_vector(1, 2)
    echo_once(driver, ring)
    assert driver.vectors.sent() == {102: 1}
    driver.set_vector(0, 0)
    echo_once(driver, ring)
    assert driver.vectors.sent() == {100: 1}
    driver.set_vector(0, NO_VECTOR)
    echo_once(driver, ring)
    assert driver.vectors.sent() == {}


def test_there_is_no_vector_that_the_table_has_not(driver: PciDriver) -> None:
    assert driver.set_vector(0, 3) == NO_VECTOR
    driver.store("config_msix_vector", 0x8000)
    assert driver.load("config_msix_vector") == NO_VECTOR
    assert driver.set_vector(0, 2) == 2
    assert driver.set_vector(0, 3) == NO_VECTOR


def test_what_a_masked_vector_has_to_say_is_pending_and_comes_later(
    driver: PciDriver, memory: Memory
) -> None:
    ring = SplitDriver(memory)
    start(driver, ring)
    driver.enable_msix(3)
    driver.set_vector(0, 1)
    mask = driver.table + 16 + 12
    driver.bus.mmio.write(mask, 4, 1)
    echo_once(driver, ring)
    assert driver.vectors.sent() == {}
    pba = driver.base + driver.bus.load(driver.msix_at + 8)
    assert driver.bus.mmio.read(pba, 8) == 0b10
    driver.bus.mmio.write(mask, 4, 0)
    assert driver.vectors.sent() == {101: 1}
    assert driver.bus.mmio.read(pba, 8) == 0


def test_isr_status_tells_use_from_a_change_of_configuration(
    driver: PciDriver, memory: Memory
) -> None:
    ring = SplitDriver(memory)
    start(driver, ring)
    driver.device.config_changed()
    driver.turn()
    assert driver.isr() == CONFIG
    echo_once(driver, ring)
    driver.device.config_changed()
    driver.turn()
    assert driver.isr() == USED | CONFIG
    assert not driver.intx()


def test_a_reset_forgets_vectors_and_interrupts(driver: PciDriver, memory: Memory) -> None:
    ring = SplitDriver(memory)
    start(driver, ring)
    echo_once(driver, ring)
    assert driver.intx()
    driver.store("device_status", 0)
    assert not driver.intx()
    assert driver.isr() == 0
    driver.enable_msix(3)
    driver.set_vector(1, 1)
    driver.store("config_msix_vector", 2)
    driver.store("device_status", 0)
    assert driver.load("config_msix_vector") == NO_VECTOR
    driver.store("queue_select", 1)
    assert driver.load("queue_msix_vector") == NO_VECTOR
    assert driver.vectors.attached == {}


def test_turning_msix_off_turns_intx_on(driver: PciDriver, memory: Memory) -> None:
    ring = SplitDriver(memory)
    start(driver, ring)
    driver.enable_msix(3)
    echo_once(driver, ring)
    assert not driver.intx(), "no vector, no interrupt"
    driver.bus.store(driver.msix_at + 2, 0, 2)
    driver.turn()
    assert driver.intx(), "it had something to say"


# --- configuration space's own way to the BAR ---------------------------------------------------


def reach(driver: PciDriver, offset: int, length: int, bar: int = 0) -> None:
    driver.bus.store(driver.access + 4, bar, 1)
    driver.bus.store(driver.access + 8, offset)
    driver.bus.store(driver.access + 12, length)


def test_the_bar_can_be_reached_through_configuration_space(driver: PciDriver) -> None:
    driver.bus.command(0)
    reach(driver, driver.parts[COMMON][0] + FIELDS["device_status"][0], 1)
    driver.bus.store(driver.access + 16, A, 1)
    assert driver.bus.load(driver.access + 16, 1) == A == driver.device.status
    reach(driver, driver.parts[DEVICE][0], 4)
    assert driver.bus.load(driver.access + 16, 4) == 0x04030201
    reach(driver, driver.parts[DEVICE][0] + 4, 2)
    assert driver.bus.load(driver.access + 16, 2) == 0x0605


@pytest.mark.parametrize(
    ("offset", "length", "bar"),
    [(0x14, 3, 0), (0x14, 0, 0), (0x2001, 2, 0), (0x14, 1, 1), (1 << 20, 4, 0), (0x14, 8, 0)],
)
def test_what_is_no_access_reaches_nothing(
    driver: PciDriver, offset: int, length: int, bar: int
) -> None:
    reach(driver, offset, length, bar)
    driver.bus.store(driver.access + 16, 0xFFFF_FFFF)
    driver.bus.load(driver.access + 16)
    assert driver.device.status == 0


# --- life ---------------------------------------------------------------------------------------


def test_a_function_level_reset_resets_the_device(driver: PciDriver, memory: Memory) -> None:
    start(driver, SplitDriver(memory))
    at = driver.bus.capabilities()[EXPRESS] + 8
    driver.bus.store(at, 1 << 15, 2)
    assert driver.device.status == 0
    assert driver.device.calls[-1].startswith("stopped")


def test_a_device_that_is_no_bus_master_any_more_leaves_memory_alone(
    driver: PciDriver, memory: Memory
) -> None:
    ring = SplitDriver(memory)
    start(driver, ring)
    driver.bus.command(MEMORY_ON)
    assert driver.device.status == 0
    assert driver.device.calls[-1].startswith("stopped")
    driver.bus.command(MEMORY_ON | MASTER)
    ring = SplitDriver(memory)
    start(driver, ring)
    driver.bus.command(MEMORY_ON | MASTER | INTX_OFF)
    echo_once(driver, ring)


def test_a_device_that_never_was_one_works(driver: PciDriver, memory: Memory) -> None:
    """No driver leaves it off, but nothing is gained by refusing."""
    driver.bus.command(MEMORY_ON)
    ring = SplitDriver(memory)
    start(driver, ring)
    echo_once(driver, ring)


def test_a_machines_reset_resets_the_device(driver: PciDriver, memory: Memory) -> None:
    start(driver, SplitDriver(memory))
    driver.enable_msix(3)
    driver.set_vector(0, 0)
    driver.bus.host.reset()
    assert driver.device.status == 0
    assert driver.vectors.attached == {}
    assert driver.vectors.messages == {}


def test_closing_twice_does_no_harm(driver: PciDriver) -> None:
    driver.transport.close()
    driver.transport.close()
