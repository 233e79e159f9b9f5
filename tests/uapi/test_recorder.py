"""Recorded calls, and the C program that makes them again."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from vmm.fd import EventFd
from vmm.kvm.fd import KvmError
from vmm.kvm.ioctls import Ioctl
from vmm.kvm.system import System
from vmm.memory import Mapping
from vmm.uapi import c_program, recorder
from vmm.uapi.profile import UapiProfile
from vmm.uapi.recorder import Recorder

pytestmark = pytest.mark.kvm
SIZE = 1 << 16
POINT = re.compile(r"^(ok|not ok) (\d+) - (\w+) on (\w+)(?:: (.*))?$", re.MULTILINE)


def compiled(source: Path) -> Path:
    program = source.with_suffix("")
    flags = ["-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, "-o", program, source], check=True)
    return program


def again(source: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([compiled(source)], check=False, capture_output=True, text=True)


def make_calls() -> Recorder:
    """Make calls of each kind on KVM, some of which it refuses."""
    with (
        Recorder() as record,
        System.open() as kvm,
        Mapping.anonymous(SIZE) as memory,
        EventFd() as event,
        kvm.create_vm() as vm,
    ):
        address = memory.region(0).host_address
        vm.set_user_memory_region(0, 0, 0, SIZE, address)
        for flags, base, size in [(1 << 9, 1 << 20, SIZE), (0, 4096, SIZE), (0, 1 << 20, 100)]:
            with pytest.raises(KvmError):
                vm.set_user_memory_region(1, flags, base, size, address)
        vm.set_user_memory_region2(1, 0, 1 << 20, SIZE // 2, address + SIZE // 2)
        vm.ioeventfd(0x1000_0000, 4, event.fileno(), datamatch=1)
        with pytest.raises(KvmError):
            vm.enable_cap(1 << 20, 1, 2)
        with vm.create_vcpu(0) as vcpu:
            assert vcpu.try_ioctl(Ioctl.KVM_GET_MP_STATE, 0) < 0
        with pytest.raises(KvmError):
            vm.create_vcpu(0xFFFF)
    return record


def test_calls_are_kept_with_their_answers() -> None:
    record = make_calls()
    names = [(call.on, call.name, call.result < 0, call.makes) for call in record.calls]
    assert names[0] == ("kvm", "KVM_GET_API_VERSION", False, "")
    assert ("kvm", "KVM_CREATE_VM", False, "vm0") in names
    slots = [each for each in names if each[1] == "KVM_SET_USER_MEMORY_REGION"]
    assert [(on, failed) for on, _, failed, _ in slots] == [
        ("vm0", False),
        ("vm0", True),
        ("vm0", True),
        ("vm0", True),
    ]
    assert names[-1][:3] == ("vm0", "KVM_CREATE_VCPU", True)


def test_the_program_gets_the_same_answers(tmp_path: Path) -> None:
    record = make_calls()
    source = tmp_path / "again.c"
    source.write_text(c_program.text(record.calls, "a test"))
    done = again(source)
    assert done.returncode == 0, done.stdout
    points = re.findall(
        r"^(ok|not ok) (\d+) - (\w+) on (\w+)(?:: (.*))?$", done.stdout, re.MULTILINE
    )
    assert len(points) == len(record.calls)
    assert [bool(point[4]) for point in points] == [call.result < 0 for call in record.calls]
    assert [point[2] for point in points] == [call.name for call in record.calls]
    assert f"1..{len(points)}\n" in done.stdout
    assert ".guest_phys_addr = 0x100000," in source.read_text()


def test_the_program_tells_another_answer(tmp_path: Path) -> None:
    """The same calls, one of which is said to have been refused."""
    record = make_calls()
    source = tmp_path / "again.c"
    text = c_program.text(record.calls, "a test")
    at = text.index("KVM_SET_USER_MEMORY_REGION on vm0")
    source.write_text(text[:at] + text[at:].replace("0, 0);", "-EEXIST, 0);", 1))
    done = again(source)
    assert done.returncode == 1
    assert "(0: no error; it was -17: File exists)" in done.stdout


def test_without_kvm_it_is_skipped(tmp_path: Path) -> None:
    source = tmp_path / "again.c"
    text = c_program.text(make_calls().calls, "a test").replace('"/dev/kvm"', '"/dev/none"')
    source.write_text(text)
    done = again(source)
    assert (done.returncode, done.stdout) == (4, "1..0 # SKIP no /dev/kvm\n")


def test_a_profiles_calls_are_declared_in_the_program(tmp_path: Path) -> None:
    profile = UapiProfile.of(
        {
            "structs": "struct widget { __u64 addr; __u32 flags[2]; };",
            "ioctls": {
                "MAKE_WIDGET": {"of": "vm", "number": 0xFE, "direction": "both", "struct": "widget"}
            },
        },
        "profile",
    )
    with (
        Recorder() as record,
        System.open() as kvm,
        kvm.create_vm() as vm,
        pytest.raises(KvmError),
    ):
        profile.ioctl_raw(vm, "MAKE_WIDGET", addr=4096, flags=[1, 2])
    source = tmp_path / "again.c"
    source.write_text(c_program.text(record.calls, "a test", structs=profile.structs))
    assert ".flags = { 1, 2 }," in source.read_text()
    done = again(source)
    assert done.returncode == 0, done.stdout
    assert "MAKE_WIDGET on vm0: Inappropriate ioctl for device" in done.stdout


def test_a_recording_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MOST", 3)
    with Recorder() as record, System.open() as kvm:
        for _ in range(5):
            kvm.vcpu_mmap_size()
    assert len(record.calls) == 3
    assert record.left_out == 3
    assert "3 more calls" in c_program.text(record.calls, "", left_out=record.left_out)


def test_there_is_one_recording_at_a_time_and_none_after_it() -> None:
    with Recorder() as record, pytest.raises(ValueError, match="under way"):
        Recorder()
    with System.open():
        assert not record.calls
