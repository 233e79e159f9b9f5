"""The seccomp filters: what each kind of thread may not do, and how that is told."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import filters
import pytest

from tests.ground.sandboxed import NUMBERS, OF_THE_LOOP, OF_VCPUS, TRIALS
from vmm import sandbox
from vmm._native import ffi, lib
from vmm.kvm import ioctls as kvm
from vmm.vfio import ioctls as vfio
from vmm.virtio.net.tap import TunIoctl
from vmm.virtio.vhost.kernel import VhostIoctl

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATIENCE = 60.0
KINDS = ("loop", "vcpu", "queue", "control")
REFUSED = {
    "loop": {*TRIALS},
    "vcpu": {*TRIALS, *OF_THE_LOOP},
    "queue": {*TRIALS, *OF_THE_LOOP, *OF_VCPUS},
    "control": {*TRIALS, *OF_THE_LOOP, *OF_VCPUS},
}
POLICY: dict[str, Any] = tomllib.loads(filters.POLICY.read_text())


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        **options,
    )


def attack(mode: str, kind: str) -> tuple[dict[str, int], set[tuple[str, str]]]:
    """Return each trial's errno, and the denials that were noted."""
    done = run("tests/ground/sandboxed.py", mode, kind)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["errors"], {(call, thread) for call, thread in found["denied"]}


@pytest.fixture(scope="module")
def free() -> dict[str, int]:
    """Return each trial's errno without the sandbox: the kernel's own."""
    errors, denied = attack("off", "loop")
    assert not denied
    return errors


def named(name: str) -> set[str]:
    """Return what a denial of trial *name* may be called."""
    call, _, what = name.partition(" ")
    if call != "ioctl":
        return {call}
    return {f"ioctl({what})", "ioctl(0x5412)", "ioctl(0xdeadbeef)", "ioctl(0x3b66)"}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_thread_is_refused_what_it_does_not_need(
    kind: str, free: dict[str, int]
) -> None:
    errors, denied = attack("on", kind)
    wanted = {**free, "clone3": errno.ENOSYS, **dict.fromkeys(REFUSED[kind], errno.EPERM)}
    assert errors == wanted
    assert errno.EPERM not in {free[name] for name in REFUSED[kind]}, "a trial that shows nothing"
    assert {thread for _, thread in denied} == {kind}
    calls = {call for call, _ in denied}
    assert all(named(name) & calls for name in REFUSED[kind])
    assert calls <= set().union(*(named(name) for name in REFUSED[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_log_does_what_on_refuses_and_notes_the_same(kind: str, free: dict[str, int]) -> None:
    errors, denied = attack("log", kind)
    shares = {name for name in free if name.startswith("clone3")}
    assert {name for name in free if errors[name] != free[name]} == shares
    assert denied == attack("on", kind)[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
def test_who_is_not_root_is_confined_alike(free: dict[str, int]) -> None:
    del free
    program = (
        "import sys, json\n"
        "from vmm import sandbox\n"
        "from vmm.machine.seal import seal\n"
        "import os\n"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "seal(); sandbox.confine('on')\n"
        "try:\n    os.open('/dev/null', os.O_RDONLY)\n"
        "except PermissionError as error:\n    print(error.errno)\n"
    )
    assert run("-c", program).stdout == f"{errno.EPERM}\n"


def test_a_thread_that_blocks_the_signal_ends_with_its_process() -> None:
    """Whoever silences the report does not get the call."""
    program = (
        "import os, signal\n"
        "from vmm import sandbox\n"
        "from vmm.machine.seal import seal\n"
        "seal(); sandbox.confine('on')\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGSYS])\n"
        "try:\n    os.open('/dev/null', os.O_RDONLY)\n"
        "finally:\n    print('went on')\n"
    )
    done = run("-c", program)
    assert done.returncode == -31  # SIGSYS
    assert not done.stdout


def test_the_numbers_of_the_trials_are_those_of_this_machine() -> None:
    machine = os.uname().machine == "aarch64"
    for name, numbers in NUMBERS.items():
        assert ffi.string(lib.pyvmm_call_name(numbers[machine])).decode() == name


def test_every_entry_says_why() -> None:
    reasons = [
        reason
        for table in (POLICY["calls"], POLICY["ioctls"])
        for kind in table.values()
        for reason in kind.values()
    ]
    reasons += POLICY["rare"].values()
    assert len(reasons) > 100
    assert all(len(reason) >= 4 and reason != "none" for reason in reasons)
    assert all(limit["why"] for limit in POLICY["limits"])


def test_no_entry_is_there_twice_and_each_limit_is_of_a_call() -> None:
    for kind, freer in filters.KINDS.items():
        for table in (POLICY["calls"], POLICY["ioctls"]):
            names = [{*table.get(each, {})} for each in freer]
            assert not {*table.get(kind, {})} & set().union(*names), kind
    calls = set(filters.names(POLICY, "calls", "loop"))
    assert {limit["call"] for limit in POLICY["limits"]} <= calls
    assert not {*POLICY["errors"]} & calls


def test_the_filters_are_those_of_the_policy() -> None:
    assert filters.digest() in filters.HEADER.read_text()


@pytest.mark.parametrize("machine", filters.MACHINES.values())
@pytest.mark.parametrize("kind", KINDS)
def test_kvm_run_is_the_first_ioctl_that_a_filter_compares(kind: str, machine: str) -> None:
    code = list(filters.program(POLICY, kind, machine))
    ioctls = filters.names(POLICY, "ioctls", kind)
    compared = [name for line in code for name in ioctls if line.endswith(f", {name} }},")]
    assert compared[:1] == {"queue": [], "control": ["FIONBIO"]}.get(kind, ["KVM_RUN"])
    assert sorted(compared) == sorted(ioctls)
    assert len(code) < 1000


def test_what_was_denied_is_said_in_one_line() -> None:
    error = sandbox.DeniedError(sandbox.Denial("ioctl(0x5412)", ("0x0",), "vcpu"))
    assert "ioctl(0x5412) was refused in a vcpu thread" in str(error)
    assert "\n" not in str(error)


BEFORE: set[str] = {
    "KVM_GET_API_VERSION",
    "KVM_CREATE_GUEST_MEMFD",
    "KVM_SET_USER_MEMORY_REGION2",
    "VFIO_GET_API_VERSION",
    "VFIO_CHECK_EXTENSION",
    "VFIO_SET_IOMMU",
    "VFIO_GROUP_GET_STATUS",
    "VFIO_GROUP_SET_CONTAINER",
    "VFIO_GROUP_GET_DEVICE_FD",
    "VFIO_DEVICE_GET_INFO",
    "VFIO_DEVICE_GET_REGION_INFO",
    "VFIO_DEVICE_GET_IRQ_INFO",
    "VFIO_DEVICE_BIND_IOMMUFD",
    "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
    "VFIO_DEVICE_DETACH_IOMMUFD_PT",
    "VFIO_GROUP_UNSET_CONTAINER",
    "IOMMU_IOAS_ALLOC",
    "IOMMU_DESTROY",
    "VHOST_VSOCK_SET_GUEST_CID",
    "TUNSETIFF",
    "TUNSETVNETHDRSZ",
}
"""Ioctls that are issued before the process is confined only, by other commands, or never."""

OF_CPYTHON: set[str] = {
    "FIONBIO",
    "TIOCGPGRP",
    "TCGETS",
    "TCSETS",
    "TCSETSW",
    "TCSETSF",
    "TIOCGWINSZ",
}


def test_each_ioctl_is_allowed_or_comes_before() -> None:
    """A new one has to be decided on."""
    enums = (
        kvm.Ioctl,
        vfio.ContainerIoctl,
        vfio.GroupIoctl,
        vfio.DeviceIoctl,
        vfio.IommufdIoctl,
        VhostIoctl,
        TunIoctl,
    )
    issued = {member.name for enum in enums for member in enum}
    allowed = set(filters.names(POLICY, "ioctls", "loop"))
    assert allowed - issued == OF_CPYTHON
    assert not allowed & BEFORE
    assert issued - allowed == BEFORE
