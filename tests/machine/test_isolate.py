"""A process that is isolated reaches nothing that was not open."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vmm.errors import HostError
from vmm.machine.isolate import FIRST_USER, isolate
from vmm.thread import start

ATTACKER = Path(__file__).parent / "isolated.py"
NOBODY = 65534
KEY, IPC_CREAT, IPC_RMID = 0x7079766D, 0o1000, 0
ROOT = os.geteuid() == 0


@cache
def outcome(user: int) -> Any:
    libc = ctypes.CDLL(None)
    segment = libc.shmget(KEY, 1, IPC_CREAT | 0o666)
    assert segment >= 0
    command = [sys.executable, str(ATTACKER), str(user)]
    try:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            command, capture_output=True, check=False, timeout=60, env=environment
        )
    finally:
        libc.shmctl(segment, IPC_RMID, None)
    assert done.stdout, done.stderr.decode()
    return json.loads(done.stdout)


USERS = [0, NOBODY] if ROOT else [os.geteuid()]


@pytest.mark.parametrize("user", USERS)
def test_each_attack_is_refused(user: int) -> None:
    found = outcome(user)
    refused = {errno.EPERM, errno.EACCES, errno.ENOENT, errno.ESRCH, errno.ENETUNREACH}
    refused |= {errno.ENOSYS, errno.EINVAL}
    let = {name: result for name, result in found["attacks"].items() if result not in refused}
    if "scope" not in found["walls"]:
        let.pop("signal a process of the same user", None)
    if "network" not in found["walls"]:
        let.pop("send a datagram", None)
    if "ipc" not in found["walls"]:
        let.pop("attach to shared memory", None)
    assert let == {}
    if "files" in found["walls"]:
        assert found["attacks"]["open a file"] == errno.ENOENT
        assert found["attacks"]["climb out"] == errno.ENOENT
    if "landlock" in found["walls"]:
        assert found["attacks"]["open the root"] == errno.EACCES
    assert found["open files work"]


@pytest.mark.parametrize("user", USERS)
def test_no_capability_is_left_and_none_can_come(user: int) -> None:
    process = outcome(user)["process"]
    assert set(process["CapEff"] + process["CapBnd"]) == {"0000000000000000"}
    assert process["NoNewPrivs"] == ["1"]


def test_others_get_namespaces_where_the_host_allows() -> None:
    user = NOBODY if ROOT else os.geteuid()
    walls = outcome(user)["walls"]
    make = ["unshare", "--user", "--map-current-user", "true"]
    allowed = subprocess.run(make, capture_output=True, check=False, user=user or None).returncode
    assert (walls[:4] == ["user", "files", "network", "ipc"]) is (allowed == 0), walls


@pytest.mark.skipif(not ROOT, reason="not root")
def test_root_becomes_a_user_that_nobody_else_is() -> None:
    found = outcome(0)
    assert found["walls"][:4] == ["user", "files", "network", "ipc"]
    assert len(set(found["process"]["Uid"] + found["process"]["Gid"])) == 1
    assert int(found["process"]["Uid"][0]) > FIRST_USER
    assert found["process"]["Groups"] == []


def test_a_process_with_threads_is_refused() -> None:
    """Walls are a thread's: another one would stay outside."""
    read, write = os.pipe()
    thread = start("waits", os.read, read, 1)
    with pytest.raises(HostError, match=r"\d+ threads run before the guest does"):
        isolate()
    os.write(write, b"x")
    thread.join()
    for fd in (read, write):
        os.close(fd)
    assert os.geteuid() < FIRST_USER
