"""UAPI profiles: what they say, and what is said of wrong ones."""

from __future__ import annotations

import errno
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmm._native import lib
from vmm.errors import UserError
from vmm.kvm.fd import KvmError
from vmm.kvm.system import System
from vmm.kvm.vm import Vm
from vmm.memory import Mapping
from vmm.uapi.profile import UapiProfile

KNOWN = """
structs = '''
struct slot { __u32 slot; __u32 flags; __u64 guest_phys_addr, memory_size, userspace_addr; };
struct enable { __u32 cap; __u32 flags; __u64 args[4]; __u8 pad[64]; };
'''
enable = ["KVM_CAP_ONE"]
ram_flags = ["LOG", "RO"]
[capabilities]
KVM_CAP_ONE = 3
[memory_flags]
LOG = 1
RO = 2
[ioctls.SET_SLOT]
of = "vm"
number = 0x46
direction = "write"
struct = "slot"
[ioctls.CHECK]
of = "vm"
number = 0x03
[ioctls.ENABLE]
of = "vm"
number = 0xa3
direction = "write"
struct = "enable"
[ioctls.NOBODYS]
of = "vm"
number = 0xff
"""


def profile(text: str = KNOWN) -> UapiProfile:
    return UapiProfile.of(tomllib.loads(text), "file.toml")


def test_numbers_are_the_kernels() -> None:
    ioctls = profile().ioctls
    assert ioctls["SET_SLOT"].request == lib.KVM_SET_USER_MEMORY_REGION
    assert ioctls["CHECK"].request == lib.KVM_CHECK_EXTENSION
    assert ioctls["ENABLE"].request == lib.KVM_ENABLE_CAP
    assert profile().ram_bits == 3
    assert profile().enabled == (3,)


@pytest.mark.parametrize(
    ("text", "at", "what"),
    [
        ("widgets = 1", "widgets", "no such key"),
        ("structs = 1", "structs", "is no text"),
        ("structs = 'struct a {'", "structs", "not C"),
        ("[capabilities]\na = -1", "capabilities.a", "no number of 32 bits"),
        ("[capabilities]\na = true", "capabilities.a", "no number"),
        ("[capabilities]\n'a b' = 1", "capabilities.a b", "not a name"),
        ("capabilities = 3", "capabilities", "no table"),
        ("enable = ['A']", "enable", "'A' is not in [capabilities]"),
        ("ram_flags = 'A'", "ram_flags", "no array"),
        ("ioctls = {A = 3}", "ioctls.A", "no table"),
        ("[ioctls.A]\nof = 'cpu'", "ioctls.A.of", "none of system, vm, vcpu"),
        ("[ioctls.A]\nof = 'vm'", "ioctls.A.number", "None is no number of 8 bits"),
        ("[ioctls.A]\nof = 'vm'\nnumber = 1\nsize = 3", "ioctls.A.size", "no such key"),
        ("[ioctls.A]\nof = 'vm'\ndirection = 'up'", "ioctls.A.direction", "none of"),
        ("[ioctls.A]\nof = 'vm'\nnumber = 1\nstruct = 'a'", "ioctls.A", "belong together"),
        (
            "[ioctls.A]\nof = 'vm'\nnumber = 1\ndirection = 'read'\nstruct = 'a'",
            "ioctls.A.struct",
            "not in structs",
        ),
        (
            "structs = 'struct a { char b[16384]; };'\n[ioctls.A]\nof = 'vm'\n"  # noqa: ISC004
            "number = 1\ndirection = 'read'\nstruct = 'a'",
            "ioctls.A.struct",
            "16384 bytes are more",
        ),
    ],
)
def test_a_wrong_profile_is_one_line_with_the_key(text: str, at: str, what: str) -> None:
    with pytest.raises(UserError) as raised:
        profile(text)
    assert str(raised.value).startswith(f"file.toml: {at}: ")
    assert what in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        UapiProfile.load(tmp_path / "none")
    (tmp_path / "bad").write_text("a = ")
    with pytest.raises(UserError, match="no TOML"):
        UapiProfile.load(tmp_path / "bad")


@pytest.fixture
def vm() -> Iterator[Vm]:
    with System.open() as kvm, kvm.create_vm() as vm:
        yield vm


@pytest.mark.kvm
def test_a_raw_ioctl_does_what_the_named_one_does(vm: Vm) -> None:
    said = profile()
    assert said.ioctl_raw(vm, "CHECK", 3).result == vm.check_extension(3)
    with Mapping.anonymous(1 << 16) as memory:
        where = {"memory_size": 1 << 16, "userspace_addr": memory.region(0).host_address}
        assert said.ioctl_raw(vm, "SET_SLOT", **where).result == 0
        with pytest.raises(KvmError):  # it overlaps the first
            vm.set_user_memory_region(1, 0, 0, 1 << 16, memory.region(0).host_address)


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("SET_SLOT", {"flags": 1 << 31, "memory_size": 4096}, errno.EINVAL),
        ("NOBODYS", {}, errno.ENOTTY),
    ],
)
def test_a_refusal_names_the_ioctl_and_its_members(
    vm: Vm, name: str, fields: dict[str, Any], expected: int
) -> None:
    with pytest.raises(KvmError) as raised:
        profile().ioctl_raw(vm, name, **fields)
    assert raised.value.errno == expected
    assert str(raised.value).startswith(name)
    for member in fields:
        assert member in str(raised.value)


def test_members_that_are_not_there_are_the_callers_mistake() -> None:
    fd: Any = None
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("SET_SLOT", {"slots": 0}),
        ("SET_SLOT", {"slot": 1 << 32}),
        ("SET_SLOT", {"slot": "a"}),
        ("CHECK", {"slot": 1}),
        ("MISSING", {}),
    ]
    for name, fields in wrong:
        with pytest.raises(UserError):
            profile().ioctl_raw(fd, name, **fields)
