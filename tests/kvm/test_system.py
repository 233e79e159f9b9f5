"""/dev/kvm on hosts that differ: the answers are canned, because no host gives them all."""

from __future__ import annotations

from typing import Any

import pytest

from vmm.fd import Request
from vmm.kvm.ioctls import Ioctl
from vmm.kvm.system import System


class Host(System):
    """Answer as a host with this IPA size in bits does; 0: its kernel offers no choice."""

    def __init__(self, bits: int) -> None:
        super().__init__(-1)
        self._bits = bits
        self.created: list[int] = []

    def ioctl(self, request: Request, arg: Any = 0, /, **_shown: object) -> int:
        if request is Ioctl.KVM_CHECK_EXTENSION:
            return self._bits
        if request is Ioctl.KVM_CREATE_VM:
            self.created.append(arg)
        return -1 if request is Ioctl.KVM_CREATE_VM else 0x1000


@pytest.mark.parametrize(("bits", "machine_type"), [(0, 0), (40, 0), (48, 0), (36, 36), (39, 39)])
def test_a_vm_of_default_size_exists_on_every_host(bits: int, machine_type: int) -> None:
    """KVM refuses type 0, its own default of 40 bits, where the host has fewer."""
    host = Host(bits)
    host.create_vm()
    assert host.created == [machine_type]


def test_a_vm_has_room_for_what_is_to_be_in_it() -> None:
    host = Host(48)
    for end in (1 << 30, 1 << 40, (1 << 40) + 1, 1 << 44):
        host.create_vm(end)
    assert host.created == [0, 0, 41, 44]
