"""Lab hosts that die, or whose owner dies: nothing is left, and users get an error."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.lab.host import profiles, state
from vmm.lab.host.emulated_host import Host

pytestmark = pytest.mark.lab

FWB = profiles.PROFILES["fwb"]


@pytest.fixture(autouse=True)
def run_directory(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))


def test_a_host_that_dies_is_reported_in_one_line() -> None:
    with Host.start("fwb") as host:
        assert host.run(["true"]).status == 0
        assert host.record.qemu
        killer = threading.Timer(2, host.record.qemu.kill)
        killer.start()
        with pytest.raises(HostError, match="lab host fwb went away"):
            host.run(["sleep", "60"])
        killer.join()
        with pytest.raises(HostError, match=r"lab host fwb (does not answer|went away)"):
            host.run(["true"])
    assert list(state.hosts_directory().iterdir()) == []


def test_a_host_ends_with_its_starter_however_that_ends(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from vmm.lab.host.emulated_host import Host\n"
        "with Host.start('fwb') as host:\n"
        "    print(host.record.qemu.pid, flush=True)\n"
        "    host.run(['sleep', '60'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as starter:
        assert starter.stdout
        emulator = state.Process.of(int(starter.stdout.readline()))
        assert emulator
        starter.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while emulator.alive:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert list(state.hosts()) == []  # which sweeps
    assert list(state.hosts_directory().iterdir()) == []


def test_a_host_that_does_not_boot_says_what_it_said() -> None:
    profile = replace(FWB, name="broken", command_line="rdinit=/nonexistent init=/nonexistent")
    with pytest.raises(HostError, match=r"lab host .*(not up|ended before).*panic"):
        Host.start(profile)
    assert list(state.hosts_directory().iterdir()) == []


def test_an_emulator_that_refuses_says_why() -> None:
    profile = replace(FWB, name="broken", cpu="pentium")
    with pytest.raises(HostError, match=r"ended before it was up.*pentium"):
        Host.start(profile)
    assert list(state.hosts_directory().iterdir()) == []


def test_a_profiles_setup_runs_before_the_host_is_ready() -> None:
    profile = replace(FWB, name="setup", setup=("echo done > /run/setup",))
    with Host.start(profile) as host:
        assert host.run(["cat", "/run/setup"], tree=False).stdout == b"done\n"


def test_a_setup_that_fails_ends_the_host() -> None:
    profile = replace(FWB, name="setup", setup=("echo no gpu >&2; exit 1",))
    with pytest.raises(HostError, match=r"setting up lab host setup: .* fails: no gpu"):
        Host.start(profile)
    assert list(state.hosts_directory().iterdir()) == []


def test_a_command_that_takes_too_long_is_ended(lab_host: Callable[[str], Host]) -> None:
    host = lab_host("fwb")
    with pytest.raises(HostError, match="sleep took over 1 s"):
        host.run(["sleep", "4242"], timeout=1)
    deadline = time.monotonic() + 20
    while b"sleep 4242" in host.run(["ps", "-o", "args"]).stdout:
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("profile", "script"),
    [
        ("fwb", "test -c /dev/kvm && dmesg | grep -q 'VHE.*initialized\\|GICv3'"),
        ("nofwb", "test -c /dev/kvm && dmesg | grep -q GICv3"),
        ("gicv2", "test -c /dev/kvm && ! dmesg | grep -q 'GICv3: '"),
        ("16k", "test -c /dev/kvm && python3 -c 'import mmap; assert mmap.PAGESIZE == 16384'"),
    ],
)
def test_every_profile_has_kvm(lab_host: Callable[[str], Host], profile: str, script: str) -> None:
    done = lab_host(profile).run(["sh", "-c", script])
    assert done.status == 0, done
