"""A real machine's process, taken over: what its threads can still ask of the kernel."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.ground.test_sandbox import KINDS, REFUSED
from tests.lab.guest.flat_guest import POWER_OFF, assemble
from tests.lab.storage import shell
from vmm.errors import EXIT_HOST
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside

pytestmark = pytest.mark.lab

ATTACKER = Path(__file__).parent / "inside" / "attacked_run.py"
BECOME = """
import os, sys
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
os.execvp(sys.argv[1], sys.argv[1:])
"""
NOBODY = ("python3", "-c", BECOME)


class Attack(NamedTuple):
    """What came of it: the run's status and stderr, its events, and what the attacker found."""

    status: int
    said: str
    events: list[dict[str, Any]]
    errors: dict[str, int]
    late: list[str]


def attack(host: Host, guest: Path, mode: str, kind: str, *prefix: str) -> Attack:
    shell(host, "rm -rf /run/attack; mkdir -m 1777 /run/attack; chmod 666 /dev/kvm")
    shell(
        host, f"cp {inside(guest)} /run/attack/guest"
    )  # pytest's directories are closed to others
    run = ["run", "--host", "native", "--memory", "64M", "--sandbox", mode]
    run += ["--events", "/run/attack/events", "/run/attack/guest"]
    command = [*prefix, "python3", inside(ATTACKER), kind, "/run/attack/found", *run]
    done = host.run(command, timeout=300)
    found = json.loads(host.run(["cat", "/run/attack/found"]).stdout)
    lines = host.run(["cat", "/run/attack/events"]).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    return Attack(done.status, done.stderr.decode(), events, found["errors"], found["late"])


@pytest.mark.profile("fwb")
@pytest.mark.parametrize("prefix", [(), NOBODY], ids=["root", "nobody"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_thread_that_a_guest_took_over_gets_nothing_more(
    lab_host: Callable[[str], Host], tmp_path: Path, kind: str, prefix: tuple[str, ...]
) -> None:
    host = lab_host("fwb")
    guest = assemble(tmp_path, POWER_OFF)
    free = attack(host, guest, "off", kind, *prefix)
    assert free.status == 0, free.said
    found = attack(host, guest, "on", kind, *prefix)
    refused = dict.fromkeys(REFUSED[kind], errno.EPERM)
    assert found.errors == {**free.errors, "clone3": errno.ENOSYS, **refused}
    assert not found.late
    assert found.status == EXIT_HOST, found.said
    (line,) = (line for line in found.said.splitlines() if "--sandbox" in line)
    assert f"was refused in a {kind} thread" in line
    denied = [each for each in found.events if each["event"] == "sandbox-denied"]
    assert {each["thread"] for each in denied} == {kind}
    assert {name.split()[0] for name in REFUSED[kind]} == {
        each["call"].partition("(")[0] for each in denied
    }
    logged = attack(host, guest, "log", kind, *prefix)
    assert logged.status == 0, logged.said
    assert logged.errors == {**free.errors, "clone3": errno.ENOSYS}
    assert {(each["call"], each["thread"]) for each in denied} == {
        (each["call"], each["thread"])
        for each in logged.events
        if each["event"] == "sandbox-denied"
    }
