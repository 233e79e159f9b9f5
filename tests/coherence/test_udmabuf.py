"""A udmabuf's slot shows what bit 3 means only if its mapping is PFNMAP."""

from __future__ import annotations

import errno
from typing import Any, Self

import pytest

from vmm.address_range import AddressRange
from vmm.coherence import udmabuf, vma
from vmm.kvm.fd import KvmError
from vmm.kvm.ioctls import Ioctl
from vmm.kvm.vm import MemFlag
from vmm.memory import Mapping, Region


class Sample:
    """Anonymous memory in a udmabuf's place: this machine may have no /dev/udmabuf."""

    def __init__(self, size: int) -> None:
        self._mapping = Mapping.anonymous(size)
        self.size = size
        self.host_address = Region(0, self._mapping.view).host_address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._mapping.close()


class Proposal:
    """A kernel with the proposal's flag: it refuses cacheable PFNMAP memory without it."""

    def set_user_memory_region(self, slot: int, flags: int, base: int, size: int, at: int) -> None:
        del base, at
        if size and not flags & MemFlag.WRITE_BACK:
            raise KvmError(Ioctl.KVM_SET_USER_MEMORY_REGION, errno.EINVAL, {"slot": slot})


@pytest.mark.parametrize("flag", ["pf", "mm", "gd"])
def test_only_a_pfnmap_mapping_is_a_sample(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    behind = vma.Vma(AddressRange(0, 1 << 48), "rw-s", "/dmabuf:", frozenset({flag}))
    monkeypatch.setattr(udmabuf, "Udmabuf", Sample)
    monkeypatch.setattr(vma, "find", lambda _address: behind)
    vm: Any = Proposal()
    answers = udmabuf.ask(vm)
    if flag == "pf":
        assert answers is not None
        assert answers.is_the_proposal
    else:
        assert answers is None


def test_without_the_device_node_there_is_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_size: int) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", str(udmabuf.NODE))

    monkeypatch.setattr(udmabuf, "Udmabuf", missing)
    vm: Any = Proposal()
    assert udmabuf.ask(vm) is None
