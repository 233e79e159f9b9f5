"""A machine's cgroup: made and entered before the guest runs, removed when all have gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import alive, eventually
from vmm.broker import cgroup
from vmm.errors import HostError

MACHINE = """
import os, sys, time
from vmm.broker import Broker, cgroup
with Broker(cgroup.DEBTS) as broker:
    _, path = broker.borrow("cgroup", sys.argv[1], os.getpid(), *sys.argv[2:])
    daemon, _ = broker.start(broker.allow(["/bin/sleep", "1000"]), [broker.null] * 3)
    broker.freeze()
    print(path, broker.pid, daemon, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def parent() -> Iterator[Path]:
    """Make a cgroup without processes."""
    try:
        path = Path(cgroup.mount()) / f"pyvmm-tests-{os.getpid()}"
        path.mkdir()
    except (OSError, HostError):
        pytest.skip("no cgroup v2 that can be written")
    yield path
    deadline = time.monotonic() + 10
    while path.exists():
        try:
            path.rmdir()
        except OSError:  # the kernel frees what a process was in after its end
            assert time.monotonic() < deadline
            time.sleep(0.05)


def controller_of(parent: Path) -> str:
    """Return a file of a limit that can be set here."""
    known = (parent / "cgroup.controllers").read_text().split()
    above = (parent.parent / "cgroup.controllers").read_text().split()
    for name, file in (("pids", "pids.max"), ("hugetlb", "hugetlb.2MB.max")):
        if name in known or name in above:
            return file
    pytest.skip("no controller of cgroup v2 that can be tried")


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_a_machine_and_its_daemons_have_a_cgroup_until_they_end(parent: Path, how: str) -> None:
    before = Path("/proc/self/cgroup").read_text()
    limit = controller_of(parent)
    command = [sys.executable, "-c", MACHINE, parent.name, limit, "4194304"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as machine:
        assert machine.stdin
        assert machine.stdout
        said = machine.stdout.readline().split()
        path, broker, daemon = Path(said[0]), int(said[1]), int(said[2])
        assert path == parent / f"pyvmm-{machine.pid}"
        assert {*map(int, (path / "cgroup.procs").read_text().split())} == {
            machine.pid,
            broker,
            daemon,
        }
        assert (path / limit).read_text() == "4194304\n"
        if how == "is killed":
            machine.send_signal(signal.SIGKILL)
        else:
            machine.stdin.close()
        machine.wait()
    eventually(lambda: not alive(broker))
    assert not path.exists()
    assert Path("/proc/self/cgroup").read_text() == before


@pytest.mark.parametrize(
    ("limits", "message"),
    [(["nothing.max", "1"], "cannot write '\\+nothing'"), ([], "cannot make .*no-such")],
)
def test_what_cannot_be_had_is_one_line_and_nothing_is_left(
    parent: Path, limits: list[str], message: str
) -> None:
    name = parent.name if limits else f"{parent.name}/no-such"
    with pytest.raises(HostError, match=message) as caught:
        cgroup.enter(name, os.getpid(), *limits)
    assert caught.value.hint
    assert not [*parent.glob("pyvmm-*")]


def test_a_value_that_the_kernel_refuses_is_one_line_and_nothing_is_left(parent: Path) -> None:
    before = Path("/proc/self/cgroup").read_text()
    with pytest.raises(HostError, match="cannot write 'much'"):
        cgroup.enter(parent.name, os.getpid(), controller_of(parent), "much")
    assert not [*parent.glob("pyvmm-*")]
    assert Path("/proc/self/cgroup").read_text() == before


def test_what_a_killed_broker_has_left_goes_with_the_next_machine(parent: Path) -> None:
    limit = controller_of(parent)
    command = [sys.executable, "-c", MACHINE, parent.name, limit, "4194304"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as machine:
        assert machine.stdin
        assert machine.stdout
        said = machine.stdout.readline().split()
        path, *processes = Path(said[0]), int(said[1]), int(said[2])
        for process in (machine.pid, *processes):
            os.kill(process, signal.SIGKILL)
    eventually(lambda: not any(map(alive, processes)))
    assert path.exists(), "nobody is left to remove it"
    starting = parent / f"pyvmm-{os.getppid()}"  # of a machine that has no process in it yet
    foreign = parent / "pyvmm-0-of-another"
    for each in (starting, foreign):
        each.mkdir()
    try:
        with pytest.raises(HostError, match="cannot write 'much'"):
            cgroup.enter(parent.name, os.getpid(), limit, "much")
        assert {*parent.glob("pyvmm-*")} == {starting, foreign}
    finally:
        for each in (starting, foreign):
            each.rmdir()


def test_a_cgroup_of_this_processs_number_is_what_a_dead_one_has_left(parent: Path) -> None:
    (parent / f"pyvmm-{os.getpid()}").mkdir()
    with pytest.raises(HostError, match="cannot write 'much'"):
        cgroup.enter(parent.name, os.getpid(), controller_of(parent), "much")
    assert not [*parent.glob("pyvmm-*")]
