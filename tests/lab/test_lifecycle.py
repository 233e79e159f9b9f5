"""Machines leave nothing behind, and the exit status of pyvmm tells how the guest ended."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.guest.flat_guest import (
    ALL_CPUS,
    CATCH,
    LOST,
    PANIC,
    POWER_OFF,
    RESET,
    SLEEP,
    SPIN,
    UNCLAIMED,
    assemble,
)
from tests.recorded import PHASES
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import Completed
from vmm.library.command import Command

pytestmark = pytest.mark.lab

CYCLES = Path(__file__).parent / "inside" / "cycles.py"
PATIENCE = 300.0
PREFETCH_ABORT, DATA_ABORT = 0x21, 0x25
"""Exception classes for aborts taken without a change in exception level (Arm ARM, ESR_EL1)."""


@pytest.fixture
def host(lab_host: Callable[[str], Host]) -> Host:
    return lab_host("fwb")


@pytest.fixture
def run(host: Host, tmp_path: Path) -> Callable[..., Completed]:
    """``run(source, option...)`` boots a flat guest and returns pyvmm's status and output."""

    def run(source: str, *options: str) -> Completed:
        guest = assemble(tmp_path, source)
        command = ["pyvmm", "run", "--memory", "64M", *options, str(guest)]
        return host.run(command, timeout=PATIENCE)

    return run


@pytest.mark.parametrize(("cpus", "count"), [(1, 100), (4, 10)])
def test_a_hundred_machines_leave_nothing_behind(
    host: Host, tmp_path: Path, cpus: int, count: int
) -> None:
    guest = assemble(tmp_path, POWER_OFF)
    command = ["python3", str(CYCLES), str(guest), str(cpus), str(count)]
    done = host.run(command, timeout=2 * PATIENCE)
    assert done.status == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    before, after = found["before"], found["after"]
    for what in ("fds", "threads", "vms"):
        assert after[what] == before[what], found
    assert after["vms"] == 0
    assert after["mappings"] <= before["mappings"] + 2, found
    # The C library's arenas come in megabytes; nine times 50 machines stayed within 200 KiB.
    assert after["rss_kib"] <= before["rss_kib"] + 4096, found
    assert after["blocks"] <= before["blocks"] + 5 * count, found


def test_a_guest_that_powers_off_ends_it_with_0(run: Callable[..., Completed]) -> None:
    assert run(POWER_OFF) == Completed(0, b"", b"")


def test_sixteen_cpus_start(run: Callable[..., Completed]) -> None:
    assert run(ALL_CPUS.format(cpus=16), "--cpus", "16") == Completed(0, b"", b"")


def test_as_many_cpus_start_as_the_board_has_room_for(run: Callable[..., Completed]) -> None:
    assert run(ALL_CPUS.format(cpus=123), "--cpus", "123") == Completed(0, b"", b"")


def test_a_guest_that_resets_for_ever_is_stopped(run: Callable[..., Completed]) -> None:
    done = run(RESET)
    assert done.status == 4
    assert done.stdout == b""
    assert done.stderr.startswith(b"pyvmm: the guest has reset 5 times in a row, ")
    assert done.stderr.count(b"\n") == 1


def test_no_reboot_ends_it_at_the_first_reset(run: Callable[..., Completed]) -> None:
    assert run(RESET, "--no-reboot") == Completed(0, b"", b"")


def test_a_guest_that_reports_a_panic_ends_it_with_4(run: Callable[..., Completed]) -> None:
    assert run(PANIC) == Completed(4, b"", b"pyvmm: the guest has panicked\n")


def test_an_address_without_device_reads_as_zero(run: Callable[..., Completed]) -> None:
    assert run(UNCLAIMED) == Completed(0, b"", b"")


@pytest.mark.parametrize(
    ("misdeed", "exception"),
    [
        ("ldr x0, =NOWHERE; ldp x1, x2, [x0]", DATA_ABORT),
        ("ldr x0, =UART; ldp x1, x2, [x0]", DATA_ABORT),
        ("ldr x0, =UART; ldr x1, [x0], #8", DATA_ABORT),
        ("ldr x0, =NOWHERE; br x0", PREFETCH_ABORT),
        ("ldr x0, =UART; br x0", PREFETCH_ABORT),
    ],
    ids=["ldp nowhere", "ldp a device", "write-back", "jump nowhere", "execute a device"],
)
def test_an_access_that_nobody_can_answer_is_an_abort_in_the_guest(
    run: Callable[..., Completed], misdeed: str, exception: int
) -> None:
    assert run(CATCH.format(misdeed=misdeed)) == Completed(0, bytes([exception]), b"")


def test_events_tell_what_the_guest_did(
    run: Callable[..., Completed], host: Host, tmp_path: Path
) -> None:
    events = tmp_path / "events.json"
    misdeed = "ldr x0, =NOWHERE; ldp x1, x2, [x0]"
    assert run(CATCH.format(misdeed=misdeed), "--events", str(events)).status == 0
    told = [json.loads(line) for line in events.read_text().splitlines()]
    told = [event for event in told if event["event"] not in PHASES]
    assert [event["event"] for event in told] == [
        "power-on",
        "undecodable-access",
        "system-event",
        "ended",
    ]
    assert told[1]["ipa"] == 0x2000_0000
    assert told[2]["type"] == "SHUTDOWN"


@pytest.mark.parametrize("source", [SPIN, SLEEP, LOST], ids=["spins", "sleeps", "is lost"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_whatever_the_guest_does(
    host: Host, tmp_path: Path, source: str, number: signal.Signals
) -> None:
    guest = assemble(tmp_path, f"ldr x2, =UART; mov w1, #'!'; strb w1, [x2]\n{source}")
    command = ["pyvmm", "run", "--memory", "64M", "--cpus", "2", str(guest)]
    with Command(host, command) as console:
        console.expect(b"!")
        console.signal(number)
        assert console.finish() == 128 + number, console.story()
        assert console.errors == b"", console.story()
