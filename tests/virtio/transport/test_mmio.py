"""The virtio-mmio transport and the device's states, as a driver sees them."""

from __future__ import annotations

import pytest

from tests.recorded import Recorded
from tests.virtio.driver import FORMAT_FEATURES, echo_once, start
from tests.virtio.mmio_driver import CONFIG, REGISTERS, USED, Echo, MmioDriver
from tests.virtio.ring_driver import BASE, BUFFERS, Buffer, Memory, PackedDriver, SplitDriver
from vmm.events import COMPLAINTS
from vmm.virtio import device as virtio
from vmm.virtio import status
from vmm.virtio.notify import Ioeventfd
from vmm.virtio.queue import Areas
from vmm.virtio.transport.mmio import SIZE

A, D, OK, LIVE = status.ACKNOWLEDGE, status.DRIVER, status.FEATURES_OK, status.DRIVER_OK


# --- registers ----------------------------------------------------------------------------------


def test_it_says_what_it_is(driver: MmioDriver) -> None:
    assert driver.load("MagicValue") == 0x74726976
    assert driver.load("Version") == 2
    assert driver.load("DeviceID") == 42
    assert driver.load("VendorID").to_bytes(4, "little") == b"pyvm"


def test_it_offers_all_features_in_words_of_32(driver: MmioDriver) -> None:
    assert driver.offered() == 1 << 5 | 1 << 28 | 1 << 29 | 1 << 32 | 1 << 34 | 1 << 40
    driver.store("DeviceFeaturesSel", 0xFFFF_FFFF)
    assert driver.load("DeviceFeatures") == 0


def test_there_is_no_shared_memory(driver: MmioDriver) -> None:
    assert driver.load("SHMLenLow") == driver.load("SHMBaseHigh") == 0xFFFF_FFFF


def test_queues_that_are_not_there_have_no_size(driver: MmioDriver) -> None:
    sizes = []
    for index in (0, 1, 2, 0xFFFF_FFFF):
        driver.store("QueueSel", index)
        sizes.append(driver.load("QueueSizeMax"))
    assert sizes == [8, 16, 0, 0]
    for register in ("QueueSize", "QueueReady", "QueueDescLow", "QueueNotify", "QueueReset"):
        driver.store(register, 3)
    assert driver.load("QueueReady") == 0


@pytest.mark.parametrize("size", [1, 2, 8])
def test_registers_are_four_bytes_wide(driver: MmioDriver, size: int) -> None:
    for register in set(REGISTERS) - {"Config"}:
        assert driver.load(register, size) == 0
    driver.store("Status", A, size)
    assert driver.load("Status") == 0


def test_what_is_no_register_reads_as_zero(driver: MmioDriver) -> None:
    for offset in range(SIZE):
        if offset not in REGISTERS.values() and offset < REGISTERS["Config"] and offset < 0xB0:
            assert driver.transport.read(offset, 4) == 0
            driver.transport.write(offset, 4, 0xFFFF_FFFF)


def test_the_configuration_is_read_in_any_size(driver: MmioDriver, echo: Echo) -> None:
    assert driver.transport.read(0x100, 1) == 1
    assert driver.transport.read(0x101, 2) == 0x0302
    assert driver.transport.read(0x100, 8) == 0x0807060504030201
    assert driver.transport.read(0x108, 8) == 0x0A09
    assert driver.transport.read(0x1FF, 1) == 0
    driver.transport.write(0x102, 2, 0xABCD)
    assert echo.written == [(2, b"\xcd\xab")]


# --- status -------------------------------------------------------------------------------------


def test_a_driver_goes_from_step_to_step(driver: MmioDriver, echo: Echo) -> None:
    assert driver.add_status(A) == A
    assert driver.add_status(D) == A | D
    driver.accept(virtio.F_VERSION_1 | 1 << 5)
    assert driver.add_status(OK) == A | D | OK
    assert echo.accepted == virtio.F_VERSION_1 | 1 << 5
    assert not echo.live
    assert driver.add_status(LIVE) == A | D | OK | LIVE
    assert echo.live


def test_a_driver_may_take_several_steps_at_once(driver: MmioDriver) -> None:
    driver.accept(virtio.F_VERSION_1)
    driver.store("Status", A | D | OK | LIVE)
    assert driver.load("Status") == A | D | OK | LIVE


def test_a_driver_need_not_say_that_it_saw_the_device(driver: MmioDriver, events: Recorded) -> None:
    """U-Boot does not."""
    driver.accept(virtio.F_VERSION_1)
    assert driver.add_status(D) == A | D
    assert driver.add_status(OK) == A | D | OK
    driver.store("Status", D | OK | LIVE)
    assert driver.load("Status") == A | D | OK | LIVE
    assert events.seen == []


@pytest.mark.parametrize(
    ("before", "written", "after"),
    [
        (0, OK, 0),
        (0, LIVE, 0),
        (A, A | OK, A),
        (A | D, A | D | LIVE, A | D),
        (A | D, A, A | D),
        (A | D | OK | LIVE, A | D | OK, A | D | OK | LIVE),
    ],
)
def test_no_step_may_be_left_out_or_taken_back(
    driver: MmioDriver, events: Recorded, before: int, written: int, after: int
) -> None:
    driver.accept(virtio.F_VERSION_1)
    driver.store("Status", before)
    driver.store("Status", written)
    assert driver.load("Status") == after
    wanted = ("virtio-bad-status", {"device": "echo", "status": after, "written": written})
    # Storing 0 resets, which is a lawful thing to do.
    assert events.seen == ([] if written == 0 else [wanted])


def test_a_driver_may_give_up_at_any_time(driver: MmioDriver, events: Recorded) -> None:
    assert driver.add_status(status.FAILED) == status.FAILED
    driver.store("Status", 0)
    assert driver.load("Status") == 0
    assert driver.add_status(A) == A
    assert driver.add_status(status.FAILED) == A | status.FAILED
    assert events.seen == []


@pytest.mark.parametrize("features", [0, 1 << 5, virtio.F_VERSION_1 | 1 << 6, 1 << 63])
def test_features_that_were_not_offered_are_refused(
    driver: MmioDriver, events: Recorded, features: int
) -> None:
    driver.store("Status", A | D)
    driver.accept(features)
    assert driver.add_status(OK) == A | D
    assert events.names() == ["virtio-features-refused"]
    driver.accept(virtio.F_VERSION_1)
    assert driver.add_status(OK) == A | D | OK


def test_features_in_words_that_no_device_has_are_no_features(driver: MmioDriver) -> None:
    driver.store("DriverFeaturesSel", 0xFFFF_FFFF)
    driver.store("DriverFeatures", 1)
    assert driver.negotiate() == A | D | OK


def test_features_stay_once_they_are_agreed_upon(driver: MmioDriver, echo: Echo) -> None:
    driver.negotiate()
    driver.accept(1 << 63)
    assert echo.accepted == virtio.F_VERSION_1
    assert driver.add_status(LIVE) & LIVE


def test_a_hostile_driver_cannot_fill_the_log(driver: MmioDriver, events: Recorded) -> None:
    for _ in range(1000):
        driver.store("Status", OK)
    assert len(events.seen) == COMPLAINTS


# --- queues -------------------------------------------------------------------------------------


def test_a_queue_works(driver: MmioDriver, ring: SplitDriver | PackedDriver) -> None:
    start(driver, ring)
    for _ in range(20):
        echo_once(driver, ring)
        assert driver.load("InterruptStatus") == USED
        assert driver.interrupts() == 1
        driver.store("InterruptACK", USED)


def test_no_interrupt_comes_that_the_driver_does_not_want(
    driver: MmioDriver, ring: SplitDriver | PackedDriver
) -> None:
    start(driver, ring)
    ring.suppress()
    echo_once(driver, ring)
    assert driver.interrupts() == 0


def test_a_live_device_may_always_have_used_something(
    driver: MmioDriver, ring: SplitDriver | PackedDriver
) -> None:
    """So whoever used it, perhaps another process, only has to signal the interrupt."""
    driver.negotiate(FORMAT_FEATURES[ring.form])
    assert driver.load("InterruptStatus") == 0
    start(driver, ring)
    assert driver.load("InterruptStatus") == USED
    driver.store("InterruptACK", USED)
    assert driver.load("InterruptStatus") == USED
    driver.store("Status", 0)
    assert driver.load("InterruptStatus") == 0


def test_acknowledging_use_leaves_a_change_of_configuration_pending(
    driver: MmioDriver, echo: Echo, ring: SplitDriver | PackedDriver
) -> None:
    start(driver, ring)
    echo.config_changed()
    driver.store("InterruptACK", USED)
    assert driver.load("InterruptStatus") == USED | CONFIG
    driver.store("InterruptACK", USED | CONFIG)
    assert driver.load("InterruptStatus") == USED


def test_what_was_available_before_driver_ok_is_served_after(
    driver: MmioDriver, ring: SplitDriver | PackedDriver
) -> None:
    driver.negotiate(FORMAT_FEATURES[ring.form])
    driver.set_queue(0, ring.size, ring.areas)
    ring.add(Buffer(BUFFERS, 10))
    driver.notify()
    assert ring.used() == []
    driver.add_status(LIVE)
    driver.turn()
    assert len(ring.used()) == 1


def test_no_queue_is_ready_before_features_are_agreed_upon(driver: MmioDriver) -> None:
    driver.store("Status", A | D)
    assert driver.set_queue(0, 8, Areas(BASE, BASE + 0x8000, BASE + 0xC000)) == 0


def test_a_ready_queue_cannot_be_changed(driver: MmioDriver, echo: Echo, memory: Memory) -> None:
    driver.negotiate()
    ring = SplitDriver(memory)
    driver.set_queue(0, 8, ring.areas)
    before = echo.slots[0].queue
    driver.set_queue(0, 4, Areas(0, 0, 0))
    assert echo.slots[0].queue is before
    assert echo.slots[0].areas == ring.areas
    driver.store("QueueReady", 0)
    assert driver.load("QueueReady") == 0
    assert echo.slots[0].queue is None


@pytest.mark.parametrize(
    ("size", "areas"),
    [(16, Areas(BASE, BASE, BASE)), (3, Areas(BASE, BASE, BASE)), (8, Areas(0, 0, 1 << 63))],
)
def test_a_queue_where_none_can_be_needs_a_reset(
    driver: MmioDriver, events: Recorded, size: int, areas: Areas
) -> None:
    driver.negotiate()
    assert driver.set_queue(0, size, areas) == 0
    assert driver.load("Status") == A | D | OK | status.NEEDS_RESET
    assert driver.interrupts() == 0, "not before DRIVER_OK (2.1.2)"
    assert events.names() == ["virtio-needs-reset"]
    driver.set_queue(0, size, areas)
    assert events.names() == ["virtio-needs-reset"], "told once"


def test_a_bad_ring_needs_a_reset_and_gets_one(
    driver: MmioDriver, events: Recorded, ring: SplitDriver | PackedDriver
) -> None:
    start(driver, ring)
    ring.add(Buffer(0, 1))
    driver.notify()
    assert driver.load("Status") == A | D | OK | LIVE | status.NEEDS_RESET
    assert (driver.load("InterruptStatus"), driver.interrupts()) == (CONFIG | USED, 1)
    ((event, fields),) = events.seen
    assert event == "virtio-needs-reset"
    assert fields["device"] == "echo"
    assert fields["queue"] == 0
    assert "beyond guest memory" in str(fields["error"])
    driver.notify()
    assert len(events.seen) == 1
    driver.store("Status", 0)
    assert driver.load("Status") == driver.load("InterruptStatus") == 0
    fresh = type(ring)(ring.memory)
    ring.memory.guest.write(BASE, bytes(0x1_0000))
    start(driver, fresh)
    echo_once(driver, fresh)


def test_a_single_queue_can_be_reset_and_set_up_anew(
    driver: MmioDriver, echo: Echo, memory: Memory
) -> None:
    """2.6.1, RING_RESET."""
    start(driver, SplitDriver(memory), virtio.F_RING_RESET)
    driver.store("QueueSel", 0)
    driver.store("QueueReset", 1)
    assert driver.load("QueueReset") == driver.load("QueueReady") == 0
    driver.notify()
    fresh = SplitDriver(memory, size=4, at=BASE + 0x1_0000)
    assert driver.set_queue(0, fresh.size, fresh.areas) == 1
    echo_once(driver, fresh)
    assert echo.calls[-3:] == ["started 0", "stopped 0", "started 0"], "the device went on"


def test_a_queue_is_not_reset_unless_that_was_agreed_upon(
    driver: MmioDriver, memory: Memory
) -> None:
    start(driver, SplitDriver(memory))
    driver.store("QueueSel", 0)
    driver.store("QueueReset", 1)
    assert driver.load("QueueReady") == 1


def test_two_queues_are_served_each_by_its_own_doorbell(driver: MmioDriver, memory: Memory) -> None:
    first, second = SplitDriver(memory), SplitDriver(memory, size=16, at=BASE + 0x1_0000)
    driver.negotiate(virtio.F_INDIRECT_DESC)
    driver.set_queue(0, first.size, first.areas)
    driver.set_queue(1, second.size, second.areas)
    driver.add_status(LIVE)
    echo_once(driver, second, 1)
    echo_once(driver, first, 0)


def test_kvm_can_have_the_doorbells(driver: MmioDriver, echo: Echo) -> None:
    fds = [slot.doorbell.fileno() for slot in echo.slots]
    *bells, acknowledgement = driver.transport.ioeventfds()
    assert bells == [Ioeventfd(0x50, 4, fds[0], 0), Ioeventfd(0x50, 4, fds[1], 1)]
    assert acknowledgement.offset == REGISTERS["InterruptACK"]
    assert (acknowledgement.width, acknowledgement.datamatch) == (4, USED)
    assert acknowledgement.fd not in fds


# --- the rest of a life -------------------------------------------------------------------------


def test_a_change_of_the_configuration_is_told(driver: MmioDriver, echo: Echo) -> None:
    echo.config_changed()
    assert driver.load("ConfigGeneration") == 1
    assert driver.interrupts() == 0, "nobody is there"
    driver.negotiate()
    driver.add_status(LIVE)
    echo.config_changed()
    assert driver.load("ConfigGeneration") == 2
    assert (driver.load("InterruptStatus"), driver.interrupts()) == (CONFIG | USED, 1)


def test_a_reset_forgets_everything(driver: MmioDriver, echo: Echo, memory: Memory) -> None:
    ring = SplitDriver(memory)
    start(driver, ring, 1 << 5)
    echo_once(driver, ring)
    driver.store("QueueNotify", 0)
    driver.transport.reset()
    assert driver.load("Status") == driver.load("InterruptStatus") == driver.interrupts() == 0
    assert driver.load("QueueReady") == echo.accepted == 0
    driver.turn()
    assert echo.calls[-2:] == ["stopped 0", "stopped 1"]
    fresh = SplitDriver(memory, at=BASE + 0x1_0000)
    start(driver, fresh)
    echo_once(driver, fresh)


def test_closing_twice_does_no_harm(driver: MmioDriver) -> None:
    driver.transport.close()
    driver.transport.close()
