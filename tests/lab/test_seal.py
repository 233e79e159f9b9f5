"""The process of a machine whose guest runs has given up what it does not need; so have daemons."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.guest.flat_guest import SPIN, assemble
from vmm.lab.host import packages
from vmm.lab.host.emulated_host import Host

pytestmark = pytest.mark.lab

INSIDE = Path(__file__).parent / "inside" / "sealed_run.py"


@pytest.mark.profile("fwb")
@pytest.mark.parametrize("sandbox", ["on", "off"])
def test_a_machines_process_is_sealed_before_its_guest_runs(
    lab_host: Callable[[str], Host], tmp_path: Path, sandbox: str
) -> None:
    host = lab_host("fwb")
    packages.install(host, ["passt"])
    guest = assemble(tmp_path, SPIN)
    run = ["pyvmm", "run", "--host", "native", "--sandbox", sandbox, "--memory", "64M"]
    command = ["python3", str(INSIDE), *run, "--net", "user", str(guest)]
    done = host.run(command, timeout=300)
    assert done.status == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    given_up = "1" if sandbox == "on" else "0"
    assert len(found["threads"]) >= 3
    assert set(found["threads"]) == {given_up}
    assert found["core"] == ["0"] or sandbox == "off"
    assert found["ram"]
    assert all("dd" in flags for flags in found["ram"])
    daemons = [one for one in found["children"] if one["Name"].startswith("passt")]
    assert daemons  # the broker, which is there too, is as sealed as pyvmm itself
    assert {one["NoNewPrivs"] for one in daemons} == {"1"}


BROKERS = ("python3", "pyvmm")
SHARING = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 27 | 1 << 31
"""virtiofsd's: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP."""


ROOT = {"dev", "etc", "lib", "lib64", "root", "run", "usr"}
"""What the storage daemon has: libraries of a lab host are links to a cache, in /root perhaps."""


@pytest.mark.profile("fwb")
def test_each_daemon_in_a_lab_host_is_confined(
    lab_host: Callable[[str], Host], tmp_path: Path
) -> None:
    """By pyvmm, or by itself: three users, and each with a root directory of its own."""
    host = lab_host("fwb")
    packages.install(host, ["passt", "qemu-utils", "virtiofsd"])
    guest = assemble(tmp_path, SPIN)
    script = (
        "mkdir -p /run/daemons/shared /sys/fs/cgroup/machines; "
        "cd /run/daemons; rm -f base disk; truncate -s 8M base; "
        "chown 1234 base; chmod 600 base; "
        "qemu-img create -q -f qcow2 -F raw -b base disk"
    )
    assert host.run(["sh", "-ec", script], timeout=120).status == 0
    run = ["pyvmm", "run", "--host", "native", "--memory", "64M", "--net", "user", "--net", "user"]
    run += ["--cgroup", "machines,memory.max=400M,pids.max=64"]
    run += ["--disk", "/run/daemons/disk,format=qcow2", "--share", "/run/daemons/shared:files"]
    done = host.run(["python3", str(INSIDE), *run, str(guest)], timeout=300)
    assert done.status == 0, done.stderr.decode()
    found = json.loads(done.stdout)["children"]
    assert {one["NoNewPrivs"] for one in found if one["Name"] not in BROKERS} == {"1"}
    assert {one["cgroup"].rpartition("-")[0] for one in found} == {"0::/machines/pyvmm"}
    left = host.run(["sh", "-c", "ls -d /sys/fs/cgroup/machines/*/ || true"], timeout=60)
    assert left.stdout == b""
    (storage,) = (one for one in found if one["Name"].startswith("qemu-storage"))
    assert storage["Uid"].split() == [str(0x7000_0000 + storage["pid"])] * 4
    assert int(storage["CapEff"], 16) == int(storage["CapBnd"], 16) == 1 << 1
    assert {"mnt", "net", "ipc"} <= {*storage["own"]}
    assert {*storage["root"]} <= ROOT
    assert storage["Seccomp"] == "2"
    passts = [one for one in found if one["Name"].startswith("passt")]
    assert len({one["Uid"] for one in passts}) == 2
    for passt in passts:
        assert int(passt["Uid"].split()[0]) > 0x7100_0000
        assert int(passt["CapEff"], 16) & ~(1 << 10 | 1 << 13) == 0  # ports, raw sockets
        assert (passt["root"], passt["Seccomp"]) == ([], "2")
    shares = [one for one in found if one["Name"].startswith("virtiofsd")]
    assert shares
    for share in shares:
        assert int(share["CapEff"], 16) & ~SHARING == 0
        assert share["Seccomp"] == "2"
