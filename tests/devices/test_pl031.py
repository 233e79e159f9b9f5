"""The PL031, with a clock that tests advance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.devices.pl031 import (
    RTCCR,
    RTCDR,
    RTCICR,
    RTCIMSC,
    RTCLR,
    RTCMIS,
    RTCMR,
    RTCRIS,
    Pl031,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_800_000_000


@dataclass
class Timer:
    due: float
    callback: Callable[[], object] | None

    def cancel(self) -> None:
        self.callback = None


@dataclass
class Host:
    """The host's clock, its timers, and the interrupt line."""

    now: float = NOW + 0.25
    timers: list[Timer] = field(default_factory=list)
    levels: list[bool] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        assert seconds > 0
        self.timers.append(Timer(self.now + seconds, callback))
        return self.timers[-1]

    def set_level(self, level: bool) -> None:  # noqa: FBT001  (the protocol's signature)
        self.levels.append(level)

    def interrupt(self) -> bool:
        return bool(self.levels) and self.levels[-1]

    def armed(self) -> list[Timer]:
        return [timer for timer in self.timers if timer.callback]

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for timer in self.armed():
            if timer.due <= self.now and timer.callback:
                callback, timer.callback = timer.callback, None
                callback()


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def rtc(host: Host) -> Pl031:
    return Pl031(host, host.call_later, clock=host.clock)


def test_dr_is_the_hosts_time(host: Host, rtc: Pl031) -> None:
    assert rtc.read(RTCDR, 4) == NOW
    host.advance(0.75)
    assert rtc.read(RTCDR, 4) == NOW + 1


def test_lr_sets_the_time_and_the_host_moves_it_on(host: Host, rtc: Pl031) -> None:
    rtc.write(RTCLR, 4, 1000)
    host.advance(5)
    assert (rtc.read(RTCDR, 4), rtc.read(RTCLR, 4)) == (1005, 1000)


def test_dr_wraps_at_32_bits(host: Host, rtc: Pl031) -> None:
    rtc.write(RTCLR, 4, 0xFFFF_FFFF)
    host.advance(1)
    assert rtc.read(RTCDR, 4) == 0


def test_the_clock_runs_from_power_on(rtc: Pl031) -> None:
    assert rtc.read(RTCCR, 4) == 1
    rtc.write(RTCCR, 4, 0)
    assert rtc.read(RTCCR, 4) == 1


def test_the_identification_is_that_of_a_pl031(rtc: Pl031) -> None:
    words = [rtc.read(offset, 4) for offset in range(0xFE0, 0x1000, 4)]
    assert sum(word << 8 * index for index, word in enumerate(words[:4])) == 0x0014_1031
    assert sum(word << 8 * index for index, word in enumerate(words[4:])) == 0xB105F00D


def test_the_alarm_interrupts_in_the_very_second_and_until_cleared(host: Host, rtc: Pl031) -> None:
    rtc.write(RTCIMSC, 4, 1)
    rtc.write(RTCMR, 4, NOW + 10)
    host.advance(9.7)
    assert rtc.read(RTCRIS, 4) == 0
    host.advance(0.05)
    assert (rtc.read(RTCRIS, 4), rtc.read(RTCMIS, 4)) == (1, 1)
    assert host.interrupt()
    rtc.write(RTCICR, 4, 1)
    assert rtc.read(RTCRIS, 4) == 0
    assert not host.interrupt()
    assert not host.armed()


def test_a_masked_alarm_waits_for_its_mask(host: Host, rtc: Pl031) -> None:
    rtc.write(RTCMR, 4, NOW + 1)
    host.advance(1)
    assert (rtc.read(RTCRIS, 4), rtc.read(RTCMIS, 4), host.interrupt()) == (1, 0, False)
    rtc.write(RTCIMSC, 4, 1)
    assert host.interrupt()


def test_an_alarm_for_now_rises_now(host: Host, rtc: Pl031) -> None:
    rtc.write(RTCMR, 4, NOW)
    assert rtc.read(RTCRIS, 4) == 1
    assert not host.armed()


def test_an_alarm_in_the_past_waits_for_the_clock_to_wrap(host: Host, rtc: Pl031) -> None:
    rtc.write(RTCMR, 4, NOW - 1)
    assert rtc.read(RTCRIS, 4) == 0
    assert host.armed()[0].due == NOW - 1 + (1 << 32)


def test_setting_the_clock_moves_the_alarm(host: Host, rtc: Pl031) -> None:
    rtc.write(RTCMR, 4, 5000)
    rtc.write(RTCLR, 4, 4990)
    assert len(host.armed()) == 1
    host.advance(10)
    assert rtc.read(RTCRIS, 4) == 1


def test_an_alarm_follows_a_host_whose_clock_is_set_back(host: Host, rtc: Pl031) -> None:
    rtc.write(RTCMR, 4, NOW + 10)
    (timer,) = host.armed()
    host.now -= 100
    assert timer.callback
    timer.callback()
    assert rtc.read(RTCRIS, 4) == 0
    host.advance(110)
    assert rtc.read(RTCRIS, 4) == 1


def test_a_timer_that_was_cancelled_too_late_does_nothing(host: Host, rtc: Pl031) -> None:
    rtc.write(RTCMR, 4, NOW + 10)
    expired = host.armed()[0].callback
    assert expired
    rtc.close()
    host.now += 100
    expired()
    assert rtc.read(RTCRIS, 4) == 0


def test_reset_forgets_the_alarm_but_not_the_time(host: Host, rtc: Pl031) -> None:
    rtc.write(RTCLR, 4, 1000)
    rtc.write(RTCIMSC, 4, 1)
    rtc.write(RTCMR, 4, 1000)
    assert host.interrupt()
    rtc.write(RTCMR, 4, 2000)
    rtc.reset()
    assert not host.interrupt()
    assert not host.armed()
    assert [rtc.read(offset, 4) for offset in (RTCDR, RTCMR, RTCIMSC, RTCRIS)] == [1000, 0, 0, 0]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*range(0, 0x20, 4), 2, 0xFE4]),
            st.integers(0, 2**64 - 1),
            st.floats(0, 2.0**33),
        )
    )
)
def test_whatever_is_written_one_timer_runs_at_most_and_the_line_is_the_masked_interrupt(
    steps: list[tuple[int, int, float]],
) -> None:
    host = Host()
    rtc = Pl031(host, host.call_later, clock=host.clock)
    for offset, value, seconds in steps:
        rtc.write(offset, 8, value)
        host.advance(seconds)
        assert len(host.armed()) <= 1
        assert host.interrupt() == bool(rtc.read(RTCMIS, 4))
        assert all(0 <= rtc.read(offset, 4) < 1 << 32 for offset in range(0, 0x20, 4))
