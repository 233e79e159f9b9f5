"""pvpanic: what a guest may say of its own end."""

from __future__ import annotations

import pytest

from vmm.devices.pvpanic import REPORTS, PanicEvent, PvPanic


@pytest.fixture
def events() -> list[PanicEvent]:
    return []


@pytest.fixture
def panic(events: list[PanicEvent]) -> PvPanic:
    return PvPanic(events.append)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_load_tells_which_events_are_supported(panic: PvPanic, size: int) -> None:
    assert panic.read(0, size) == PanicEvent.PANICKED | PanicEvent.CRASH_LOADED


def test_the_second_byte_is_empty(panic: PvPanic, events: list[PanicEvent]) -> None:
    assert panic.read(1, 1) == 0
    panic.write(1, 1, 1)
    assert not events


@pytest.mark.parametrize("event", list(PanicEvent))
def test_a_store_reports_its_event(
    panic: PvPanic, events: list[PanicEvent], event: PanicEvent
) -> None:
    panic.write(0, 1, event)
    assert events == [event]


def test_a_guest_cannot_report_without_end(panic: PvPanic, events: list[PanicEvent]) -> None:
    for _ in range(2 * REPORTS):
        panic.write(0, 1, PanicEvent.CRASH_LOADED)
    assert len(events) == REPORTS
    panic.write(0, 1, PanicEvent.PANICKED)
    assert events[-1] == PanicEvent.PANICKED, "which ends the guest"


def test_unknown_events_are_ignored(panic: PvPanic, events: list[PanicEvent]) -> None:
    panic.write(0, 1, 0xFC)
    assert not events
    panic.write(0, 1, 0xFD)
    assert events == [PanicEvent.PANICKED]
