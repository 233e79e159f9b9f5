"""What is not known to be memory is looked at by a slot that cannot be written."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Self

import pytest

from vmm.coherence import dump
from vmm.coherence import prove as proving
from vmm.coherence.cpu import CacheFeatures
from vmm.coherence.scratch import Fate, Outcome
from vmm.kvm.vm import MemFlag
from vmm.memory import Mapping, Region
from vmm.passthrough import memslot_cases, memslot_survey
from vmm.passthrough.memslot_cases import Bytes, Memory


class Guest:
    """A scratch guest in which all runs; it remembers its slot's flags, and what was done."""

    flags: list[int] = []  # noqa: RUF012  (of the last guest)
    ran: list[str] = []  # noqa: RUF012

    def __init__(self, *where: Any, features: object = None, register: Any = None) -> None:
        del features
        self.flags[:] = [where[3]]
        if register is not None:
            register(self)
        self.ran.clear()
        self.vm = None
        self.cpu = CacheFeatures.judge(1 << 40, 1 << 29, 0)
        self.behind = None
        self.timeout = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def enable_cap(self, _capability: int) -> None:
        pass

    def set_user_memory_region(self, _slot: int, flags: int, *_where: int) -> None:
        self.flags[:] = [flags]

    def protect(self) -> None:
        self.flags[0] |= MemFlag.READONLY

    def run(self, program: str, _offset: int) -> Outcome:
        assert self.flags[0] & MemFlag.READONLY or program != "jump" or "plant" in self.ran
        self.ran.append(program)
        return Outcome(Fate.RAN)


@pytest.fixture(autouse=True)
def _guest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "ScratchGuest", Guest)
    monkeypatch.setattr(memslot_survey, "ScratchGuest", Guest)
    monkeypatch.setattr(dump, "read", lambda _vm: None)


SYSTEM: Any = None


@pytest.mark.parametrize("flags", [0, int(MemFlag.WRITE_BACK)])
def test_bytes_that_nobody_knows_are_executed_from_a_read_only_slot(flags: int) -> None:
    proving.prove(SYSTEM, 0x1000, mmap.PAGESIZE, flags=flags)
    assert Guest.flags == [flags | MemFlag.READONLY]
    assert "plant" not in Guest.ran
    with Mapping.anonymous(mmap.PAGESIZE) as mapping:
        address = Region(0, mapping.view).host_address
        contents = Bytes(mapping.view)
        proving.prove(SYSTEM, address, mmap.PAGESIZE, flags=flags, contents=contents)
        del contents
    assert Guest.flags == [flags]


class Device:
    """A device of one region, in anonymous memory, for the survey's cases."""

    def __init__(self, mapping: Mapping) -> None:
        self.host_address = Region(0, mapping.view).host_address
        self.size = len(mapping.view)

    def region(self, _index: int) -> Any:
        return self

    def map(self, *_where: int) -> Any:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("case", ["plain", "asked", "changed", "replaced", "beside"])
def test_no_row_of_a_device_executes_from_a_slot_that_can_be_written(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Guest.run` checks it: what it jumps to was planted, or the slot is read-only."""
    monkeypatch.setattr(memslot_cases, "_move", lambda *_: None)
    with Mapping.anonymous(memslot_cases.SIZE) as mapping:
        device: Any = Device(mapping)
        regions = memslot_cases.Regions(device, SYSTEM, SYSTEM)
        cases: dict[str, Callable[[], Any]] = {
            "plain": lambda: _plain(device),
            "asked": lambda: regions.asked(4),
            "changed": lambda: regions.changed(4, lambda _address: None),
            "replaced": lambda: regions.replaced(4, 4),
            "beside": lambda: regions.beside(4, first=True),
        }
        with cases[case]() as memory:
            answer, verdict, _ = memslot_survey._try(SYSTEM, memory, flag=False)
    assert (answer, verdict) == ("ok", "forced WB")
    assert Guest.flags[0] & MemFlag.READONLY
    assert "jump" in Guest.ran


def _plain(device: Any) -> Any:
    return nullcontext(Memory(device.host_address, device.size))
