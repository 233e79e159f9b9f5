"""Targets: registers of chips, configuration space, and vCPUs at one device at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Barrier, Thread

from tests.devices import test_cfi_flash, test_pl011, test_pl031
from tests.fuzz.given import Given
from tests.fuzz.target import by_choices, by_property
from tests.passthrough import test_hostile_guest
from tests.pci import test_hostile_pci, test_msix
from tests.recorded import Recorded
from tests.virtio.mmio_driver import Echo, MmioDriver
from tests.virtio.pci_driver import PciDriver
from tests.virtio.ring_driver import Memory
from tests.virtio.test_hostile import still_works
from tests.virtio.transport.test_hostile_pci import still_works as works_over_pci
from vmm.virtio.transport.mmio import MmioTransport

Access = tuple[int, int, int, bool]
"""Offset, size in bytes, value, and whether it is a store."""

MMIO_REGISTERS = (
    0x14,
    0x24,
    0x20,
    0x30,
    0x38,
    0x44,
    0x44,
    0x50,
    0x60,
    0x64,
    0x70,
    0x70,
    0x80,
    0x90,
)
VALUES = (0, 1, 2, 3, 7, 8, 11, 15, 128, 0xFFFF_FFFF)
BOTH = 2
ACCESSES = 40


def accesses(given: Given, offsets: tuple[int, ...]) -> list[Access]:
    made = []
    for _ in range(given.randrange(ACCESSES)):
        size = given.choice((4, 4, 4, 1, 2, 8))
        value = given.choice(VALUES) & (1 << 8 * size) - 1
        made.append((given.choice(offsets), size, value, given.random() < 0.7))
    return made


def at_once(*programs: Callable[[], object]) -> None:
    """Run *programs*, one a thread, switching all the time; raise what one raised."""
    together, failures = Barrier(len(programs)), []

    def run(program: Callable[[], object]) -> None:
        try:
            together.wait(10)
            program()
        except BaseException as error:  # noqa: BLE001  (raised again below)
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [Thread(target=run, args=(program,)) for program in programs]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if failures:
        raise failures[0]


def vcpus_over_mmio(given: Given) -> None:
    """Two vCPUs access one device's registers; then a correct driver uses it."""
    memory = Memory()
    with MmioTransport(Echo(memory, Recorded())) as transport:
        driver = MmioDriver(transport)

        def program(steps: list[Access]) -> Callable[[], None]:
            def run() -> None:
                for offset, size, value, store in steps:
                    if store:
                        transport.write(offset, size, value)
                    assert 0 <= transport.read(offset, size) < 1 << 8 * size

            return run

        at_once(*(program(accesses(given, MMIO_REGISTERS)) for _ in range(BOTH)))
        driver.turn()
    still_works(memory)
    memory.close()


def vcpus_over_pci(given: Given) -> None:
    """Two vCPUs access one function's BAR and configuration space; then a driver uses it."""
    memory, events = Memory(), Recorded()
    driver = PciDriver(Echo(memory, events))
    bar = (*range(0, 0x40, 4), 0x1000, 0x1004, 0x2000, 0x2008, 0x200C, 0x3000)
    config = (0x04, 0x06, 0x10, 0x14, 0x18, 0x40, 0x50, 0x52, 0x60, 0x70)

    def program(steps: list[Access], slot_too: list[Access]) -> Callable[[], None]:
        def run() -> None:
            for offset, size, value, store in steps:
                if store:
                    driver.bus.mmio.write(driver.base + offset, size, value)
                assert 0 <= driver.bus.mmio.read(driver.base + offset, size) < 1 << 8 * size
            for offset, size, value, store in slot_too:
                if store:
                    driver.bus.store(offset & -size, value, size)
                assert 0 <= driver.bus.load(offset & -size, size) < 1 << 8 * size

        return run

    at_once(*(program(accesses(given, bar), accesses(given, config)) for _ in range(BOTH)))
    driver.turn()
    works_over_pci(driver, memory)
    driver.bus.host.close()
    memory.close()


TARGETS = (
    by_choices("vcpus-mmio", "two vCPUs at one device's registers; it works then", vcpus_over_mmio),
    by_choices("vcpus-pci", "two vCPUs at one function; it works then", vcpus_over_pci),
    by_property(
        "pci-config",
        "BARs of three functions; they are only where they may be",
        test_hostile_pci.test_whatever_is_written_bars_are_only_where_they_may_be,
    ),
    by_property(
        "msix",
        "the table; the sink knows what it says",
        test_msix.test_the_sink_always_knows_what_the_table_says,
    ),
    by_property(
        "passthrough",
        "a function of VFIO's; nothing but the device shows",
        test_hostile_guest.test_nothing_but_the_device_shows,
    ),
    by_property(
        "pl011",
        "registers; nothing is lost or reordered",
        test_pl011.test_no_sequence_of_accesses_loses_reorders_or_raises,
    ),
    by_property(
        "pl011-fast",
        "registers by C and by Python; a guest sees no difference",
        test_pl011.test_the_fast_path_differs_from_python_in_nothing_a_guest_can_see,
    ),
    by_property(
        "pl031",
        "registers and time; one timer at most",
        test_pl031.test_whatever_is_written_one_timer_runs_at_most_and_the_line_is_the_masked_interrupt,
    ),
    by_property(
        "flash",
        "commands; only what flash can change changes",
        test_cfi_flash.test_whatever_a_guest_stores_it_changes_only_what_flash_can,
    ),
)
