"""Flash in a running VM: a read-only memory slot in array mode, exits otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kvm.tiny import ARCH, CODE, DEVICE, Echo, Op, Spin, Store
from vmm.devices.cfi_flash import SIZE
from vmm.events import Events
from vmm.kvm.capability import Cap
from vmm.kvm.exits import MmioRead, MmioWrite
from vmm.kvm.slots import MemorySlots
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import MemFlag, Vm
from vmm.machine.flash import FlashBank
from vmm.machine.flash_file import FlashFile
from vmm.memory import Mapping

pytestmark = pytest.mark.kvm

BASE = DEVICE // SIZE * SIZE
OFFSET = DEVICE - BASE
"""The address in the bank where tiny guests load and store."""

WORD = 0x1234_56FF
"""As a command this is read array, which has no effect."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "flash"
    path.write_bytes(b"\xff" * OFFSET + WORD.to_bytes(4, "little"))
    return path


class Machine:
    """A vCPU at the start of a program, and a bank of flash where it loads and stores."""

    def __init__(self, vm: Vm, path: Path, program: tuple[Op, ...], owned: ExitStack) -> None:
        code = owned.enter_context(Mapping.anonymous(ARCH.code_size))
        image = ARCH.assemble(list(program))
        code.view[: len(image)] = image
        self.slots = MemorySlots(vm)
        region = code.region(CODE)
        owned.callback(self.slots.remove, self.slots.add(CODE, region.size, region.host_address))
        file = FlashFile(path, option="--flash", read_only=False)
        self.bank = owned.enter_context(FlashBank("bank", BASE, file, Events(), read_only=False))
        self.bank.plug(self.slots)
        owned.callback(self.hide)
        self.vcpu: Vcpu = owned.enter_context(vm.create_vcpu(0))
        ARCH.point(vm, self.vcpu)

    def hide(self) -> None:
        if slot := self.slots.find(BASE):
            self.slots.remove(slot)

    def step(self) -> tuple[str, int, int]:
        """Run to the next exit, answer it, and return it."""
        exit_ = self.vcpu.run()
        match exit_:
            case MmioRead(address, size):
                value = self.bank.device.read(address - BASE, size)
                self.vcpu.complete_read(value)
                return "load", address - DEVICE, value
            case MmioWrite(address, size, value):
                self.bank.device.write(address - BASE, size, value)
                return "store", address - DEVICE, value
        raise AssertionError(exit_)


@pytest.fixture
def start(vm: Vm, path: Path) -> Iterator[Callable[..., Machine]]:
    if not vm.check_extension(Cap.READONLY_MEM):
        pytest.skip("this KVM has no read-only slots")
    with ExitStack() as owned:
        yield lambda *program: Machine(vm, path, program, owned)


def test_loads_of_the_array_need_no_exit_and_stores_do(
    start: Callable[..., Machine],
) -> None:
    machine = start(Echo(0, 8, 4), Spin())
    slot = machine.slots.find(BASE)
    assert slot is not None
    assert slot.flags == MemFlag.READONLY
    assert slot.memory_size == SIZE
    assert machine.step() == ("store", 8, WORD), "with no exit before it"
    assert machine.slots.find(BASE) is slot


def test_the_slot_goes_with_array_mode_and_comes_back(start: Callable[..., Machine]) -> None:
    program = (Store(0, 0x98), Echo(0, 8, 4), Store(0, 0xFF), Echo(0, 8, 4), Spin())
    machine = start(*program)
    assert machine.step() == ("store", 0, 0x98)
    assert machine.slots.find(BASE) is None
    shown = machine.step()
    assert shown[:2] == ("load", 0)
    assert shown[2] != WORD
    assert machine.step() == ("store", 8, shown[2])
    assert machine.step() == ("store", 0, 0xFF)
    assert machine.slots.find(BASE) is not None
    assert machine.step() == ("store", 8, WORD)


def test_the_guest_sees_what_it_programmed_and_so_does_the_file(
    start: Callable[..., Machine], path: Path
) -> None:
    """The first write replaces the mapped page by a private copy."""
    program = (Echo(0, 8, 4), Store(0, 0x40), Store(0, 0x0F), Store(0, 0xFF), Echo(0, 8, 4))
    machine = start(*program, Spin())
    expected = WORD & ~0xF0
    steps = [machine.step() for _ in range(5)]
    assert steps[0] == ("store", 8, WORD)
    assert steps[-1] == ("store", 8, expected)
    assert path.read_bytes()[OFFSET:] == expected.to_bytes(4, "little")
