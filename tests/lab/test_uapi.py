"""What an out-of-tree kernel is asked, and a run's ioctls made again by a C program."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.guest.flat_guest import ECHO, assemble
from vmm.lab.guest import fixture
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]
PATIENCE = 600.0

PROFILE = """
enable = ["KVM_CAP_ARM_SYSTEM_SUSPEND"]
[capabilities]
KVM_CAP_ARM_SYSTEM_SUSPEND = 216
KVM_CAP_NOBODYS = 9999
[memory_flags]
KVM_MEM_LOG_DIRTY_PAGES = 1
KVM_MEM_NOBODYS = 0x8000
[ioctls.KVM_GET_ONE_REG]
of = "vcpu"
number = 0xab
direction = "write"
struct = "one_reg"
[ioctls.KVM_NOBODYS]
of = "vm"
number = 0xfe
"""
STRUCT = 'structs = "struct one_reg { __u64 id, addr; };"'


def again(host: Host, source: Path) -> tuple[int, str]:
    """Compile *source* for arm64 and run it in *host*; return its status and what it said."""
    program = source.with_suffix("")
    compiler = ["aarch64-linux-gnu-gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*compiler, "-o", program, source], check=True)
    done = host.run([inside(program)], timeout=PATIENCE)
    return done.status, done.stdout.decode()


def run(host: Host, *words: str | Path, cwd: Path) -> tuple[int, str]:
    command = ["pyvmm", "run", "--host", "native", *map(str, words)]
    done = host.run(command, stdin=b"\4", cwd=cwd, timeout=PATIENCE)
    return done.status, done.stderr.decode()


def test_a_kernel_is_asked_about_a_profile(lab_host: Callable[[str], Host], tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text(STRUCT + PROFILE)
    command = ["pyvmm", "probe", "--uapi-profile", "profile.toml", "--json", "--host", "native"]
    done = lab_host("fwb").run(command, cwd=tmp_path, timeout=PATIENCE)
    assert done.status == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["capabilities"] == {
        "KVM_CAP_ARM_SYSTEM_SUSPEND": [1, 1],
        "KVM_CAP_NOBODYS": [0, 0],
    }
    assert {name: set(each.values()) for name, each in found["memory_flags"].items()} == {
        "KVM_MEM_LOG_DIRTY_PAGES": {"accepted"},
        "KVM_MEM_NOBODYS": {"unsupported"},
    }
    # arm64's KVM says EINVAL to what it does not know; a vCPU without KVM_ARM_VCPU_INIT is ENOEXEC.
    assert found["ioctls"] == {
        "KVM_GET_ONE_REG": {"errno": "ENOEXEC", "known": True},
        "KVM_NOBODYS": {"errno": "EINVAL", "known": None},
    }


def test_linux_runs_with_a_profile_and_its_ioctls_are_made_again(
    lab_host: Callable[[str], Host], tmp_path: Path
) -> None:
    host = lab_host("fwb")
    (tmp_path / "profile.toml").write_text(STRUCT + PROFILE)
    guest = fixture.guest(modules=(), packages=())
    words = ["--uapi-profile", "profile.toml", "--cpus", "2", "--rng", "--record-ioctls", "again.c"]
    words += ["--cmdline", "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"]
    status, said = run(host, *words, "--initrd", guest.initrd, guest.kernel, cwd=tmp_path)
    assert status == 0, said
    status, said = again(host, tmp_path / "again.c")
    assert status == 0, [line for line in said.splitlines() if line.startswith("not")]
    names = re.findall(r"^ok \d+ - (\w+) on (\w+)", said, re.MULTILINE)
    for name in ("KVM_SET_USER_MEMORY_REGION", "KVM_ENABLE_CAP", "KVM_SET_DEVICE_ATTR"):
        assert name in {each for each, _ in names}
    assert {on for name, on in names if name == "KVM_ARM_VCPU_INIT"} >= {"vcpu0", "vcpu1"}


@pytest.mark.parametrize(
    ("line", "call", "word"),
    [
        ('ram_flags = ["KVM_MEM_NOBODYS"]', "KVM_SET_USER_MEMORY_REGION", "flags=0x8000"),
        ('enable = ["KVM_CAP_NOBODYS"]', "KVM_ENABLE_CAP", "cap=0x270f"),
    ],
)
def test_what_a_kernel_refuses_is_refused_to_the_program_as_well(
    lab_host: Callable[[str], Host], tmp_path: Path, line: str, call: str, word: str
) -> None:
    host = lab_host("fwb")
    text = PROFILE.replace('enable = ["KVM_CAP_ARM_SYSTEM_SUSPEND"]', line)
    (tmp_path / "profile.toml").write_text(f"{STRUCT}\n{text}")
    guest = assemble(tmp_path, ECHO)
    words = ["--uapi-profile", "profile.toml", "--record-ioctls", "again.c", guest.name]
    status, said = run(host, *words, cwd=tmp_path)
    assert status == 3
    assert call in said
    assert word in said
    status, said = again(host, tmp_path / "again.c")
    assert status == 0, said
    assert re.search(rf"^ok \d+ - {call} on vm\d+: Invalid argument$", said, re.MULTILINE)
