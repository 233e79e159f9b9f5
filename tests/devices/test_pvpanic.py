"""pvpanic: reports of panics."""

from __future__ import annotations

import pytest

from vmm.devices.pvpanic import PanicEvent, PvPanic
from vmm.events import COMPLAINTS, Events


class Recorded(Events):
    """The reports, and "ended" when the guest is to end."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def emit(self, event: str, **fields: object) -> None:
        assert event == "panic"
        self.seen.append(fields["report"])

    def end(self) -> None:
        self.seen.append("ended")


@pytest.fixture
def events() -> Recorded:
    return Recorded()


@pytest.fixture
def panic(events: Recorded) -> PvPanic:
    return PvPanic(events.end, events)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_load_tells_which_events_are_supported(panic: PvPanic, size: int) -> None:
    assert panic.read(0, size) == PanicEvent.PANICKED | PanicEvent.CRASH_LOADED


def test_the_second_byte_is_empty(panic: PvPanic, events: Recorded) -> None:
    assert panic.read(1, 1) == 0
    panic.write(1, 1, 1)
    assert not events.seen


def test_a_store_reports_its_event(panic: PvPanic, events: Recorded) -> None:
    panic.write(0, 1, PanicEvent.CRASH_LOADED)
    assert events.seen == ["CRASH_LOADED"]
    panic.write(0, 1, PanicEvent.PANICKED)
    assert events.seen == ["CRASH_LOADED", "PANICKED", "ended"]


def test_a_guest_cannot_report_without_end(panic: PvPanic, events: Recorded) -> None:
    for _ in range(2 * COMPLAINTS):
        panic.write(0, 1, PanicEvent.CRASH_LOADED)
    assert len(events.seen) == COMPLAINTS
    panic.write(0, 1, PanicEvent.PANICKED)
    assert events.seen[-2:] == ["PANICKED", "ended"], "which ends the guest"


def test_a_guest_that_goes_on_after_its_panics_has_a_bound(
    panic: PvPanic, events: Recorded
) -> None:
    for _ in range(2 * COMPLAINTS):
        panic.write(0, 1, PanicEvent.PANICKED)
    assert events.seen.count("PANICKED") == COMPLAINTS
    assert events.seen.count("ended") == 2 * COMPLAINTS


def test_unknown_events_are_ignored(panic: PvPanic, events: Recorded) -> None:
    panic.write(0, 1, 0xFC)
    assert not events.seen
    panic.write(0, 1, 0xFD)
    assert events.seen == ["PANICKED", "ended"]
