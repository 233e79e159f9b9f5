"""Registers that one vCPU writes while another is in them: each access sees one value of each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import pytest
from mmio_driver import REGISTERS, Echo, MmioDriver, Recorded
from pci_driver import FIELDS, PciDriver
from ring_driver import BASE, Memory, SplitDriver

from vmm.virtio import device as virtio
from vmm.virtio.device import QueueSlot
from vmm.virtio.mmio import MmioTransport
from vmm.virtio.pci import PciTransport

GOOD, BAD = 0, 0xFFFF
"""A queue that is there, and one that is not."""

Torn = Callable[[type, str, int, int], None]


@pytest.fixture
def torn(monkeypatch: pytest.MonkeyPatch) -> Torn:
    """Have an attribute change each time somebody looks, as if another vCPU wrote it."""

    def tear(where: type, name: str, first: int, second: int) -> None:
        values = cycle((first, second))

        def look(_self: object) -> int:
            return next(values)

        def write(_self: object, _value: int) -> None:
            """Be torn all the same."""

        monkeypatch.setattr(where, name, property(look, write), raising=False)

    return tear


@pytest.mark.parametrize("first", [GOOD, BAD])
def test_a_queue_selected_meanwhile_is_no_error_over_mmio(
    driver: MmioDriver, torn: Torn, first: int
) -> None:
    driver.negotiate(virtio.F_RING_RESET)
    for register in set(REGISTERS) - {"Status", "Config"}:
        torn(MmioTransport, "_selected", first, BAD - first)
        driver.load(register)
        torn(MmioTransport, "_selected", first, BAD - first)
        driver.store(register, 1)


@pytest.mark.parametrize("first", [GOOD, BAD])
def test_a_queue_selected_meanwhile_is_no_error_over_pci(
    memory: Memory, events: Recorded, torn: Torn, first: int
) -> None:
    driver = PciDriver(Echo(memory, events))
    driver.negotiate(virtio.F_RING_RESET)
    for register in set(FIELDS) - {"device_status"}:
        torn(PciTransport, "_selected", first, BAD - first)
        driver.load(register)
        torn(PciTransport, "_selected", first, BAD - first)
        driver.store(register, 1)
    driver.transport.close()


def test_a_size_written_meanwhile_is_not_beyond_the_maximum(
    driver: MmioDriver, echo: Echo, memory: Memory, torn: Torn
) -> None:
    ring = SplitDriver(memory, at=BASE)
    driver.negotiate()
    driver.set_queue(1, 1024, ring.areas)
    assert echo.slots[1].queue is None, "it has 16"
    driver.negotiate()
    torn(QueueSlot, "size", 8, 1024)
    driver.set_queue(1, 8, ring.areas)
    queue = echo.slots[1].queue
    assert queue is not None
    assert queue.size == 8
