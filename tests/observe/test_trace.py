"""Traces, as Perfetto's own trace processor reads them."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kvm.tiny import DEVICE, Again, Echo, Spin, Store, Tiny, build
from tests.observe.trace_processor import query
from vmm._native import ffi, lib
from vmm.address_range import AddressRange
from vmm.kvm.exit_observer import ExitObserver
from vmm.kvm.mmio_fastpath import MmioFastpath, Shadow
from vmm.kvm.system import System
from vmm.loop import Loop
from vmm.observe.names import Named
from vmm.observe.trace import Trace, Tracing

EXITS = "select name, ts, dur, arg_set_id from slice where category = 'exit' order by ts"
ARGUMENTS = "select arg_set_id, key, display_value as value from args"
TRACKS = "select distinct name from thread order by name"
PROBLEMS = "select name, value from stats where severity != 'info' and value != 0"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trace.json"
    path.touch()
    return path


def fail(error: OSError) -> None:
    raise AssertionError(f"the trace has ended with {error}")


class Traced:
    """A trace in a file, and what it says once it is closed."""

    def __init__(self, path: Path, size: int = 1 << 10) -> None:
        self.path = path
        self._file = path.open("wb", buffering=0)
        self.trace = Trace(self._file.fileno(), time.monotonic_ns(), fail)
        self.ring = self.trace.source("vcpu0", size)

    def close(self) -> bytes:
        self.trace.close()
        self._file.close()
        return self.path.read_bytes()


@pytest.fixture
def start() -> Iterator[Callable[..., Tiny]]:
    with ExitStack() as owned:
        vm = owned.enter_context(owned.enter_context(System.open()).create_vm())
        yield lambda *program: build(vm, list(program), owned)


@pytest.mark.kvm
def test_perfetto_holds_every_exit_with_its_duration(
    file: Path, start: Callable[..., Tiny]
) -> None:
    guest = start(Store(0, 7), Echo(4, 8), Spin())
    traced = Traced(file)
    traced.trace.names = lambda: [Named(AddressRange(DEVICE, 0x100), 'a "device"')]
    observer = ExitObserver()
    observer.c.ring = traced.ring
    guest.vcpu.observe(observer)
    guest.vcpu.set_answers(MmioFastpath([Shadow(DEVICE + 4, 5)]))
    guest.vcpu.run()
    time.sleep(0.02)
    guest.vcpu.run()
    guest.vcpu.kick()
    guest.vcpu.run()
    guest.vcpu.close()
    exits, arguments, tracks, problems = query(traced.close(), EXITS, ARGUMENTS, TRACKS, PROBLEMS)
    assert not problems
    assert {"vcpu0", "machine"} <= {track["name"] for track in tracks}
    names = [row["name"] for row in exits]
    assert names == ['a "device" store', 'a "device" load', 'a "device" store', "kick"]
    assert exits[0]["dur"] >= 20_000_000, "an exit lasts until the guest is entered again"
    assert exits[0]["ts"] + exits[0]["dur"] <= exits[1]["ts"]
    said = [
        {row["key"].removeprefix("args."): row["value"] for row in arguments
         if row["arg_set_id"] == each["arg_set_id"]}
        for each in exits
    ]  # fmt: skip
    assert said[0] == {
        "address": hex(DEVICE), "value": "0x7", "size": "1", "answered": "Python"
    }  # fmt: skip
    assert said[1] == {
        "address": hex(DEVICE + 4), "value": "0x5", "size": "1", "answered": "C"
    }  # fmt: skip


@pytest.mark.kvm
def test_lost_records_are_counted_and_said(file: Path, start: Callable[..., Tiny]) -> None:
    guest = start(Store(0, 1), Again())
    traced = Traced(file, size=64)
    observer = ExitObserver()
    observer.c.ring = traced.ring
    guest.vcpu.observe(observer)
    for _ in range(100):
        guest.vcpu.run()
    assert traced.trace.lost == 100 - 64 - 1, "the last exit has not ended"
    traced.trace.flush()
    guest.vcpu.run()
    exits, (lost,) = query(
        traced.close(), EXITS, "select display_value as n from args where key = 'args.records'"
    )
    assert len(exits) == 65
    assert lost["n"] == "35"


@pytest.mark.kvm
def test_a_ring_that_is_half_full_wakes_the_loop(file: Path, start: Callable[..., Tiny]) -> None:
    """The loop's timer is cancelled here, so that only the eventfd is left."""
    guest = start(Store(0, 1), Again())
    with Loop() as loop, file.open("wb", buffering=0) as out:
        tracing = Tracing(loop, out.fileno())
        trace = tracing.trace
        assert trace is not None
        ring = trace.source("vcpu0", 64)
        observer = ExitObserver()
        observer.c.ring = ring
        guest.vcpu.observe(observer)
        for _ in range(33):
            guest.vcpu.run()
        began = time.monotonic()
        loop.run(until=lambda: trace.records >= 32)
        assert time.monotonic() - began < 0.2, "the timer did it"
        tracing.close()
        assert trace.lost == 0


def test_chains_overlap_and_interrupts_are_instants(file: Path) -> None:
    traced = Traced(file)
    queue = traced.trace.source("disk0 queue 0", 16)
    interrupt = traced.trace.source("disk0 interrupt", 16)
    now = time.monotonic_ns()
    for number in range(2):
        lib.pyvmm_trace_put(queue, ffi.new("struct pyvmm_record *", {
            "kind": lib.PYVMM_RECORD_CHAIN, "begin": now + 1000 * number,
            "end": now + 5000, "address": number, "value": 16, "size": 4097,
        }))  # fmt: skip
    lib.pyvmm_trace_put(interrupt, ffi.new("struct pyvmm_record *", {
        "kind": lib.PYVMM_RECORD_INTERRUPT, "begin": now, "end": now, "address": 1,
    }))  # fmt: skip
    chains, (raised,), problems = query(
        traced.close(),
        "select name, dur from slice where category = 'queue' order by dur",
        "select name, dur from slice where category = 'interrupt'",
        PROBLEMS,
    )
    assert not problems
    assert chains == [
        {"name": "disk0 queue 0", "dur": 4000},
        {"name": "disk0 queue 0", "dur": 5000},
    ]
    assert raised == {"name": "disk0 interrupt", "dur": 0}


def test_phases_one_after_the_other_are_all_there(file: Path) -> None:
    """Perfetto drops spans of a track that overlap, and counts them as an error."""
    traced = Traced(file)
    at = begin = time.monotonic_ns() - 10_000_000_000  # the first begins before the trace does
    for number in range(300):
        at += 1_234_567_891 + 7919 * number
        traced.trace.span(str(number), begin, at)
        begin = at
    spans, problems = query(
        traced.close(), "select name from slice where category = 'machine'", PROBLEMS
    )
    assert not problems
    assert len(spans) == 300


def test_a_trace_of_a_process_that_was_killed_opens(file: Path) -> None:
    traced = Traced(file)
    traced.trace.mark("power-on")
    (rows,) = query(file.read_bytes(), "select name from slice")
    assert rows == [{"name": "power-on"}]
    assert json.loads(traced.close()), "and a whole one is one JSON value"


def test_a_full_disk_ends_the_trace_and_not_the_machine() -> None:
    with Path("/dev/full").open("wb", buffering=0) as out:
        errors: list[OSError] = []
        trace = Trace(out.fileno(), 0, errors.append)
        trace.mark("power-on")
        trace.flush()
        trace.close()
    assert [error.errno for error in errors] == [errno.ENOSPC], "it is said once"
