"""Chips whose state goes through JSON answer as they did before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.test_pl011 import Board
from tests.devices.test_pl031 import NOW, Host
from vmm import typed_json
from vmm.devices.pl011 import FIFO_DEPTH, REGISTERS, UARTDR, UARTFR, UARTRSR, Pl011State
from vmm.devices.pl031 import RTCDR, RTCIMSC, RTCLR, RTCMR, RTCRIS, Pl031, Pl031State

OFFSETS = [*REGISTERS, UARTDR, UARTRSR, UARTFR, 0x03C, 0x040, 0x044]
STORES = st.tuples(st.sampled_from(OFFSETS), st.integers(0, 0xFFFF))
INPUT = st.binary(min_size=1, max_size=40)


def through_json(state: Any) -> Any:
    text = json.dumps(typed_json.encode(state))
    return typed_json.decode(type(state), json.loads(text), "state")


@given(st.lists(STORES | INPUT | st.just("break"), max_size=40))
def test_a_uart_answers_as_before(steps: list[tuple[int, int] | bytes | str]) -> None:
    first, second = Board(), Board()
    for step in steps:
        if isinstance(step, tuple):
            first.uart.write(step[0], 4, step[1])
        elif isinstance(step, bytes):
            first.uart.receive(step)
        else:
            first.uart.receive_break()
    state = first.uart.state()
    assert through_json(state) == state
    second.uart.restore(through_json(state))
    assert second.uart.state() == state
    assert (second.flags, second.stores, second.mask) == (first.flags, first.stores, first.mask)
    assert second.wire.level == first.wire.level
    # The data register last: loads of it change the others.
    for offset in [*[each for each in OFFSETS if each != UARTDR], *[UARTDR, UARTRSR] * 40]:
        assert second.uart.read(offset, 4) == first.uart.read(offset, 4), hex(offset)
    assert second.wire.level == first.wire.level


@pytest.mark.parametrize(
    "wrong",
    [{"fifo": tuple(range(FIFO_DEPTH + 1))}, {"registers": {"UARTCR": 1}}],
)
def test_a_state_that_no_uart_can_have_is_refused(wrong: dict[str, Any]) -> None:
    state = typed_json.encode(Board().uart.state())
    with pytest.raises(ValueError, match=r"FIFO|registers"):
        Board().uart.restore(Pl011State(**{**state, **wrong}))


CLOCK_STORES = st.tuples(
    st.sampled_from([RTCMR, RTCLR, RTCIMSC]), st.integers(NOW - 20, NOW + 20) | st.integers(0, 1)
)


@given(st.lists(CLOCK_STORES, max_size=10), st.integers(0, 30), st.integers(0, 30))
def test_a_clock_goes_on_with_the_hosts_time(
    steps: list[tuple[int, int]], saved_for: int, then: int
) -> None:
    """It and one that was never saved show the same, also alarms that were due meanwhile."""
    kept, other = Host(), Host()
    first = Pl031(kept, kept.call_later, clock=kept.clock)
    for step in steps:
        first.write(step[0], 4, step[1])
    state = first.state()
    assert through_json(state) == state
    kept.advance(saved_for)
    other.now = kept.now
    second = Pl031(other, other.call_later, clock=other.clock)
    second.restore(through_json(state))
    kept.advance(then)
    other.advance(then)
    for offset in (RTCDR, RTCMR, RTCLR, RTCIMSC, RTCRIS):
        assert second.read(offset, 4) == first.read(offset, 4), hex(offset)
    assert other.interrupt() == kept.interrupt()


def test_an_alarm_is_a_time_of_the_hosts() -> None:
    host = Host()
    clock = Pl031(host, host.call_later, clock=host.clock)
    clock.write(RTCMR, 4, NOW + 7)
    assert clock.state() == Pl031State(0, 0, NOW + 7, 0, 0, NOW + 7)


@pytest.mark.parametrize("passed", [6, 7, 100])
def test_an_alarm_that_was_due_meanwhile_is_raised(passed: int) -> None:
    host, other = Host(), Host(now=NOW + passed)
    clock = Pl031(host, host.call_later, clock=host.clock)
    clock.write(RTCIMSC, 4, 1)
    clock.write(RTCMR, 4, NOW + 7)
    restored = Pl031(other, other.call_later, clock=other.clock)
    restored.restore(clock.state())
    assert restored.read(RTCRIS, 4) == int(passed >= 7)
    assert other.interrupt() is (passed >= 7)
    assert bool(other.armed()) is (passed < 7)
