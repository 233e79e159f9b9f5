"""A device as a function of the guest: what the guest sees, and what its writes do."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.passthrough.fake_device import (
    ATS,
    BAR0_SIZE,
    BAR2_SIZE,
    ENHANCED,
    EXPRESS,
    IO_SIZE,
    MSI,
    MSIX,
    PBA,
    PM,
    SERIAL,
    SRIOV,
    TABLE,
    VECTORS,
)
from tests.passthrough.machine_parts import INTX, Parts
from vmm._native import lib
from vmm.arm64 import layout
from vmm.config.vfio import VfioConfig
from vmm.errors import UserError
from vmm.vfio.config import COMMAND, COMMAND_MASTER, COMMAND_MEMORY
from vmm.vfio.fd import VfioError
from vmm.vfio.irq import IrqIndex

BAR = [lib.PCI_BASE_ADDRESS_0 + 4 * index for index in range(6)]
HIGH = 0x1_0000_0000
AT0, AT2, AT_IO = HIGH, HIGH + 0x1000_0000, 0x1000
ON = COMMAND_MEMORY | COMMAND_MASTER
DOORBELL = layout.GITS_TRANSLATER
CONTROL = MSIX + int(lib.PCI_MSIX_FLAGS)
ENABLE, MASK_ALL = int(lib.PCI_MSIX_FLAGS_ENABLE), int(lib.PCI_MSIX_FLAGS_MASKALL)
PMCSR = PM + int(lib.PCI_PM_CTRL)


@pytest.fixture
def parts() -> Iterator[Parts]:
    parts = Parts()
    yield parts
    parts.close()


def place(parts: Parts) -> None:
    """Give its BARs addresses, as firmware does, and switch memory on."""
    for index, address in ((0, AT0), (2, AT2)):
        parts.write(BAR[index], 4, address & 0xFFFF_FFFF)
        parts.write(BAR[index + 1], 4, address >> 32)
    parts.write(BAR[4], 4, AT_IO)
    parts.write(COMMAND, 2, ON)


def entry(parts: Parts, vector: int, data: int, *, masked: bool = False) -> None:
    """Write an entry of the MSI-X table, through its BAR."""
    at = AT0 + TABLE + 16 * vector
    for offset, value in ((0, DOORBELL), (4, 0), (8, data), (12, int(masked))):
        parts.bus.write(at + offset, 4, value)


# --- what the guest sees --------------------------------------------------------------------


def test_identity_is_the_devices_but_it_is_one_function(parts: Parts) -> None:
    assert parts.read(0) == 0x5678_1234
    assert parts.read(lib.PCI_CLASS_REVISION) == 0x010802_03
    assert parts.read(lib.PCI_HEADER_TYPE, 1) == 0


def test_a_pin_is_inta_whatever_the_host_has(parts: Parts) -> None:
    assert parts.read(lib.PCI_INTERRUPT_PIN, 1) == 1


def test_bars_have_the_regions_sizes_and_kinds(parts: Parts) -> None:
    for register in BAR:
        parts.write(register, 4, 0xFFFF_FFFF)
    sizes = [parts.read(register) for register in BAR]
    assert sizes == [
        (1 << 32) - BAR0_SIZE | 4,
        0xFFFF_FFFF,
        (1 << 32) - BAR2_SIZE | 0xC,
        0xFFFF_FFFF,
        (1 << 32) - IO_SIZE | 1,
        0,
    ]


def test_capabilities_without_those_of_another_fabric(parts: Parts) -> None:
    found, at = [], parts.read(lib.PCI_CAPABILITY_LIST, 1)
    while at:
        found.append((at, parts.read(at, 1)))
        at = parts.read(at + 1, 1)
    ids = (lib.PCI_CAP_ID_PM, lib.PCI_CAP_ID_MSI, lib.PCI_CAP_ID_EXP, lib.PCI_CAP_ID_MSIX)
    assert found == list(zip((PM, MSI, EXPRESS, MSIX), ids, strict=True))
    assert ENHANCED not in dict(found)


def test_extended_capabilities_start_where_they_must(parts: Parts) -> None:
    """The first is hidden: it becomes the null capability, with a link to the next."""
    assert parts.read(SRIOV) == SERIAL << 20
    assert parts.read(SERIAL) == 3 | 1 << 16
    assert parts.read(SERIAL + 4) == 0xCAFE
    assert ATS not in (parts.read(SRIOV) >> 20, parts.read(SERIAL) >> 20)


def test_an_endpoint_on_the_root_bus_is_integrated_and_has_no_link(parts: Parts) -> None:
    assert parts.read(EXPRESS + lib.PCI_EXP_FLAGS, 2) == lib.PCI_EXP_TYPE_RC_END << 4 | 2
    assert parts.read(EXPRESS + lib.PCI_EXP_LNKCAP) == 0
    assert parts.read(EXPRESS + lib.PCI_EXP_DEVCAP) == lib.PCI_EXP_DEVCAP_FLR


def test_registers_that_are_the_devices_are_written_through(parts: Parts) -> None:
    control = EXPRESS + int(lib.PCI_EXP_DEVCTL)
    parts.write(control, 2, 0x2810)
    assert parts.told("config") == [("config", control, 2, 0x2810)]
    parts.write(lib.PCI_INTERRUPT_LINE, 1, 9)
    parts.write(lib.PCI_CACHE_LINE_SIZE, 1, 16)
    assert len(parts.told("config")) == 1


def test_the_rom_is_hidden_unless_asked_for(parts: Parts, tmp_path: Path) -> None:
    parts.write(lib.PCI_ROM_ADDRESS, 4, 0xFFFF_FFFF)
    assert parts.read(lib.PCI_ROM_ADDRESS) == 0
    path = tmp_path / "rom"
    path.write_bytes(b"\x55\xaa" + b"rom" * 1000)
    other = Parts(VfioConfig(parts.device.bdf, rom=path))
    try:
        other.write(lib.PCI_ROM_ADDRESS, 4, 0xFFFF_FFFF)
        assert other.read(lib.PCI_ROM_ADDRESS) == (1 << 32) - 4096 | 1
        other.write(lib.PCI_ROM_ADDRESS, 4, layout.PCI_MEMORY)
        other.write(COMMAND, 2, COMMAND_MEMORY)
        assert other.bus.read(layout.PCI_MEMORY, 2) == 0xFFFF, "it has a bit of its own"
        other.write(lib.PCI_ROM_ADDRESS, 4, layout.PCI_MEMORY | 1)
        assert other.bus.read(layout.PCI_MEMORY, 2) == 0xAA55
        assert other.bus.read(layout.PCI_MEMORY + 4094, 2) == 0xFFFF
        other.bus.write(layout.PCI_MEMORY, 2, 0)
        assert other.bus.read(layout.PCI_MEMORY, 2) == 0xAA55
    finally:
        other.close()


def test_a_rom_that_is_not_there_is_said(parts: Parts) -> None:
    with pytest.raises(UserError, match=r"rom=/nowhere/rom: No such file"):
        Parts(VfioConfig(parts.device.bdf, rom=Path("/nowhere/rom")))


# --- memory ---------------------------------------------------------------------------------


def test_a_bar_is_slots_but_for_the_pages_of_the_msix_table(parts: Parts) -> None:
    place(parts)
    assert parts.told("slot") == [("slot", AT0, TABLE), ("slot", AT2, BAR2_SIZE)]
    assert PBA + 0x1000 == BAR0_SIZE
    offset = 1 << 41
    os.pwrite(parts.device.file.fileno(), b"in region 2", offset)
    assert parts.bus.read(AT2 + 3, 8) == int.from_bytes(b"region 2", "little")


def test_memory_comes_after_the_devices_own_and_goes_before_it(parts: Parts) -> None:
    place(parts)
    order = [entry[0] for entry in parts.told("config", "slot")]
    assert order == ["config", "slot", "slot"]
    parts.diary.clear()
    parts.write(COMMAND, 2, COMMAND_MASTER)
    order = [entry[0] for entry in parts.told("config", "slot gone")]
    assert order == ["slot gone", "slot gone", "config"]
    assert not parts.vm.slots
    assert parts.told("config") == [("config", COMMAND, 2, COMMAND_MASTER)]


def test_who_watches_hears_of_memory_that_comes_and_goes(parts: Parts) -> None:
    place(parts)
    assert parts.seen == [("shown", 0), ("shown", 2)]
    parts.seen.clear()
    parts.write(COMMAND, 2, 0)
    assert parts.seen == [("hiding", 0), ("hiding", 2)]
    parts.write(COMMAND, 2, ON)
    parts.seen.clear()
    parts.function.disconnect()
    assert parts.seen == [("hiding", 0), ("hiding", 2)]


def test_bars_move(parts: Parts) -> None:
    place(parts)
    parts.diary.clear()
    parts.write(BAR[2], 4, (AT2 & 0xFFFF_FFFF) + BAR2_SIZE)
    assert parts.told("slot gone", "slot") == [
        ("slot gone", AT2),
        ("slot", AT2 + BAR2_SIZE, BAR2_SIZE),
    ]
    assert not parts.told("config"), "where the host has them is not the guest's business"


def test_asleep_its_memory_does_not_answer(parts: Parts) -> None:
    place(parts)
    parts.diary.clear()
    parts.write(PMCSR, 2, 3)
    assert [entry[0] for entry in parts.diary] == ["slot gone", "slot gone", "config", "config"]
    assert parts.device.config.read(PMCSR, 2) == 3
    assert parts.read(PMCSR, 2) == 3
    parts.diary.clear()
    parts.write(PMCSR, 2, 0)
    assert [entry[0] for entry in parts.diary] == ["config", "config", "slot", "slot"]
    assert parts.device.config.read(PMCSR, 2) == 0


def test_a_bar_over_ram_or_another_device_is_refused_and_said(parts: Parts) -> None:
    place(parts)
    for address in (layout.RAM, layout.UART, layout.PCI_ECAM, layout.GIC_DISTRIBUTOR):
        parts.write(BAR[2], 4, address & 0xFFFF_FFFF)
        parts.write(BAR[3], 4, 0)
        assert {base for base, _, _ in parts.vm.slots.values()} == {AT0}
    assert {event["device"] for event in parts.events["pci-bar-refused"]} == {parts.device.bdf}


def test_bars_on_each_other_are_refused_until_there_is_room(parts: Parts) -> None:
    place(parts)
    parts.write(BAR[2], 4, AT0 & 0xFFFF_FFFF)
    assert {base for base, _, _ in parts.vm.slots.values()} == {AT0}
    parts.write(BAR[0], 4, AT2 & 0xFFFF_FFFF)
    assert {base for base, _, _ in parts.vm.slots.values()} == {AT0, AT2}


def test_io_and_what_lies_beyond_a_region_are_trapped(parts: Parts) -> None:
    place(parts)
    parts.write(COMMAND, 2, ON | lib.PCI_COMMAND_IO)
    parts.bus.write(layout.PCI_IO + AT_IO + 4, 4, 0x1234)
    assert parts.bus.read(layout.PCI_IO + AT_IO + 4, 4) == 0x1234
    assert parts.bus.read(AT0 + TABLE + 16 * VECTORS - 4, 8) == 0xFFFF_FFFF_FFFF_FFFF


# --- interrupts -----------------------------------------------------------------------------


def test_a_machine_that_starts_has_intx(parts: Parts) -> None:
    assert parts.device.irqs.kind == "INTX"
    assert parts.vm.levels[INTX] == parts.device.irqs.signalled[0]


@pytest.mark.parametrize("resizable", [True, False])
def test_vectors_are_signalled_once_the_guest_unmasks_them(resizable: bool) -> None:  # noqa: FBT001
    parts = Parts(resizable=resizable)
    place(parts)
    parts.diary.clear()
    parts.write(CONTROL, 2, ENABLE | MASK_ALL)
    assert parts.told("disable", "signal") == [("disable", "INTX")]
    for vector in (0, 3):
        entry(parts, vector, 0x40 + vector)
    irqs = parts.device.irqs
    assert not irqs.signalled
    parts.write(CONTROL, 2, ENABLE)
    assert irqs.kind == "MSIX"
    live = {vector: fd for vector, fd in irqs.signalled.items() if fd >= 0}
    assert live.keys() == {0, 3}
    assert not any(entry[0] == "config" and entry[1] == CONTROL for entry in parts.diary)
    routes = {route.gsi: route for route in parts.vm.routes}
    for vector, fd in live.items():
        route = routes[parts.vm.irqfds[fd]]
        assert route[1:] == (DOORBELL, 0x40 + vector, parts.slot << 3)
    entry(parts, 1, 0x41)
    assert {vector for vector, fd in irqs.signalled.items() if fd >= 0} == {0, 1, 3}
    parts.write(CONTROL, 2, 0)
    assert parts.device.irqs.kind == "INTX"
    assert not parts.vm.irqfds
    parts.close()


def test_a_masked_vector_keeps_what_it_is_signalled(parts: Parts) -> None:
    place(parts)
    parts.write(CONTROL, 2, ENABLE)
    entry(parts, 2, 7)
    fd = parts.device.irqs.signalled[2]
    assert fd in parts.vm.irqfds
    entry(parts, 2, 7, masked=True)
    assert fd not in parts.vm.irqfds
    assert parts.bus.read(AT0 + PBA, 8) == 0
    os.eventfd_write(fd, 1)
    assert parts.bus.read(AT0 + PBA, 8) == 1 << 2
    entry(parts, 2, 7)
    assert fd in parts.vm.irqfds


def test_msi_has_one_message_for_several_vectors(parts: Parts) -> None:
    place(parts)
    parts.write(MSI + lib.PCI_MSI_ADDRESS_LO, 4, DOORBELL)
    parts.write(MSI + lib.PCI_MSI_DATA_64, 2, 0x60)
    parts.write(MSI + lib.PCI_MSI_MASK_64, 4, 0b1000)
    parts.write(MSI + lib.PCI_MSI_FLAGS, 2, lib.PCI_MSI_FLAGS_ENABLE | 2 << 4)
    irqs = parts.device.irqs
    assert irqs.kind == "MSI"
    routes = {route.gsi: route for route in parts.vm.routes}
    sent = {vector: routes[parts.vm.irqfds[fd]][2] for vector, fd in irqs.signalled.items()}
    assert sent == {0: 0x60, 1: 0x61, 2: 0x62}
    os.eventfd_write(irqs.signalled[1], 1)
    assert parts.read(MSI + lib.PCI_MSI_PENDING_64) == 0
    parts.write(MSI + lib.PCI_MSI_MASK_64, 4, 0b1010)
    os.eventfd_write(irqs.signalled[1], 1)
    assert parts.read(MSI + lib.PCI_MSI_PENDING_64) == 0b10
    parts.write(MSI + lib.PCI_MSI_FLAGS, 2, 0)
    assert parts.device.irqs.kind == "INTX"


def test_the_table_and_its_switch_are_written_by_two_cpus(parts: Parts) -> None:
    """Each has a lock of its own, and VFIO has one kind of interrupt at a time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    place(parts)
    failed: list[BaseException] = []
    done = Event()

    def write(step: Callable[[int], None]) -> None:
        try:
            turn = 0
            while not done.is_set():
                step(turn)
                turn += 1
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    steps = (
        lambda turn: entry(parts, turn % VECTORS, turn, masked=bool(turn & 8)),
        lambda turn: parts.write(CONTROL, 2, ENABLE if turn & 1 else 0),
        lambda turn: parts.write(MSI + lib.PCI_MSI_FLAGS, 2, turn & 1),
    )
    threads = [Thread(target=write, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    done.wait(0.5)
    done.set()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    assert not failed
    parts.write(MSI + lib.PCI_MSI_FLAGS, 2, 0)
    parts.write(CONTROL, 2, 0)
    assert parts.device.irqs.kind == "INTX"
    assert not parts.vm.irqfds


def test_vectors_that_the_host_lacks_leave_the_others_working(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal = parts.device.irqs.signal

    def some(index: IrqIndex, fds: Sequence[int], start: int = 0) -> None:
        if start > 1:
            raise VfioError(parts.device.bdf, "VFIO_DEVICE_SET_IRQS", errno.ENOSPC, {})
        signal(index, fds, start)

    place(parts)
    parts.write(CONTROL, 2, ENABLE | MASK_ALL)
    for vector in range(3):
        entry(parts, vector, vector)
    monkeypatch.setattr(parts.device.irqs, "signal", some)
    parts.write(CONTROL, 2, ENABLE)
    signalled = parts.device.irqs.signalled
    assert sorted(signalled) == [0, 1]
    assert parts.vm.irqfds.keys() >= set(signalled.values())
    assert len(parts.events["vfio-interrupts-failed"]) == 1


def test_messages_to_nowhere_are_refused_and_said(parts: Parts) -> None:
    place(parts)
    parts.write(CONTROL, 2, ENABLE)
    at = AT0 + TABLE
    for offset, value in ((0, layout.RAM), (4, 0), (8, 1), (12, 0)):
        parts.bus.write(at + offset, 4, value)
    assert not parts.vm.irqfds
    assert parts.events["msi-refused"]


# --- life -----------------------------------------------------------------------------------


def test_a_function_reset_takes_everything_back_first(parts: Parts) -> None:
    place(parts)
    parts.write(CONTROL, 2, ENABLE)
    entry(parts, 0, 1)
    parts.diary.clear()
    control = EXPRESS + int(lib.PCI_EXP_DEVCTL)
    parts.write(control, 2, lib.PCI_EXP_DEVCTL_BCR_FLR)
    kinds = [entry[0] for entry in parts.diary if entry[0] != "config"]
    assert kinds == ["disable", "slot gone", "slot gone", "reset", "signal"]
    assert parts.read(COMMAND, 2) == 0
    assert parts.read(BAR[0]) & ~0xF == 0
    assert parts.read(CONTROL, 2) & ENABLE == 0
    place(parts)
    assert len(parts.vm.slots) == 2


def test_when_the_guest_stops_the_device_is_quiet_and_reset(parts: Parts) -> None:
    place(parts)
    parts.diary.clear()
    parts.function.disconnect()
    kinds = [entry[0] for entry in parts.diary]
    assert kinds == ["disable", "slot gone", "slot gone", "config", "config", "config", "reset"]
    assert ("config", COMMAND, 2, 0) in parts.diary
    parts.slots = None
    parts.root.disconnect()
    parts.root.reset()
    assert parts.told("reset") == [("reset",)], "once is enough"
    assert parts.read(COMMAND, 2) == 0


def test_a_device_left_asleep_is_woken_for_the_next_guest() -> None:
    """The VMM wakes it, because the device may have no reset that does."""
    parts = Parts(resettable=False)
    place(parts)
    parts.write(PMCSR, 2, 3)
    parts.function.disconnect()
    parts.slots = None
    parts.root.disconnect()
    parts.root.reset()
    parts.restart()
    place(parts)
    assert len(parts.vm.slots) == 2
    parts.close()


def test_a_device_left_asleep_may_do_no_dma_once_it_is_woken() -> None:
    """VFIO restores the command register that it had when it went to D3hot."""
    parts = Parts(resettable=False)
    place(parts)
    parts.write(PMCSR, 2, 3)
    parts.function.disconnect()
    assert not parts.device.config.asleep
    assert parts.device.config.read(COMMAND, 2) == 0
    parts.close()


def test_a_device_that_cannot_be_reset_is_said_once() -> None:
    parts = Parts(resettable=False)
    for _ in range(3):
        parts.function.disconnect()
        parts.connect()
    assert len(parts.events["vfio-no-reset"]) == 1
    assert not parts.told("reset")
    parts.close()


def test_a_device_the_host_takes_back_reads_as_ones(parts: Parts) -> None:
    place(parts)
    parts.diary.clear()
    parts.function.lose()
    assert [entry[0] for entry in parts.diary] == ["disable", "slot gone", "slot gone", "close"]
    assert parts.bus.read(AT2, 4) == 0xFFFF_FFFF, "nobody is there"
    assert parts.read(0) == parts.read(SERIAL + 4) == 0xFFFF_FFFF
    place(parts)
    assert not parts.vm.slots
    parts.function.disconnect()


def test_a_device_that_is_being_given_back_is_asked_for_no_more_vectors(parts: Parts) -> None:
    """Its descriptor's number may be another file's by the time that VFIO is asked."""
    place(parts)
    parts.write(CONTROL, 2, ENABLE)
    parts.diary.clear()
    assert parts.function.msix is not None
    unmask = partial(parts.function.msix.table.write, int(lib.PCI_MSIX_ENTRY_VECTOR_CTRL), 4, 0)
    vcpu, close = Thread(target=unmask), parts.device.close

    def close_while_a_vcpu_unmasks() -> None:
        vcpu.start()
        vcpu.join(0.1)
        close()

    parts.device.close = close_while_a_vcpu_unmasks  # type: ignore[method-assign]
    parts.function.lose()
    vcpu.join()
    assert not parts.told("signal")
    assert not parts.events["vfio-interrupts-failed"]


def test_a_device_that_does_not_answer_is_said_once(parts: Parts) -> None:
    parts.device.config.gone = True
    assert parts.read(SERIAL + 4) == 0xFFFF_FFFF
    place(parts)
    assert not parts.vm.slots, "whose memory would not answer either"
    assert len(parts.events["vfio-no-answer"]) == 1
    parts.device.config.gone = False
    parts.write(COMMAND, 2, 0)
    parts.write(COMMAND, 2, ON)
    assert len(parts.vm.slots) == 2


def test_an_empty_rom_is_said(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "rom"
    path.touch()
    with pytest.raises(UserError, match=r"rom=.*: it is empty"):
        Parts(VfioConfig(parts.device.bdf, rom=path))
