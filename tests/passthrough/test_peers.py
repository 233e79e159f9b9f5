"""Device memory that other devices reach."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from tests.recorded import Recorded
from vmm.errors import HostError
from vmm.passthrough.peers import Peers
from vmm.vfio.group import Container

if TYPE_CHECKING:
    from vmm.passthrough.region_memory import RegionMemory
    from vmm.vfio.iommu import Iommu

BASE = 0x1_0000_0000


class FakeIommu:
    """Records what is mapped."""

    def __init__(self) -> None:
        self.mapped: dict[int, tuple[int, int]] = {}

    def dma_map_file(self, iova: int, fd: int, size: int) -> None:
        assert iova not in self.mapped
        os.fstat(fd)
        self.mapped[iova] = (fd, size)

    def dma_unmap(self, iova: int, size: int) -> None:
        assert self.mapped.pop(iova)[1] == size


class Memory:
    """Device memory with slots for two parts, and none for a third."""

    def __init__(self, *, exports: bool = True) -> None:
        self.name = "0000:01:00.0 region 2"
        self.base = BASE
        self.config = SimpleNamespace(region=2)
        self.device = self
        self.exported: list[tuple[int, int, int]] = []
        self._exports = exports

    @property
    def entries(self) -> list[SimpleNamespace]:
        parts = ((0, 0x2000, 3), (0x2000, 0x1000, None), (0x3000, 0x1000, 4))
        return [
            SimpleNamespace(base=self.base + at, size=size, slot=slot) for at, size, slot in parts
        ]

    def export(self, region: int, offset: int, size: int) -> int:
        if not self._exports:
            raise HostError("no such thing")
        self.exported.append((region, offset, size))
        return os.memfd_create("dma-buf")


def make(memory: Memory) -> RegionMemory:
    return cast("RegionMemory", memory)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_what_has_slots_is_mapped_wherever_it_is_and_exported_once() -> None:
    iommu, events, memory, before = FakeIommu(), Recorded(), Memory(), descriptors()
    with Peers(cast("Iommu", iommu), events) as peers:
        peers.add(make(memory))
        assert {iova: size for iova, (_, size) in iommu.mapped.items()} == {
            BASE: 0x2000,
            BASE + 0x3000: 0x1000,
        }
        peers.remove(make(memory))
        assert not iommu.mapped
        memory.base += 1 << 20
        peers.add(make(memory))
        assert min(iommu.mapped) == BASE + (1 << 20)
        assert memory.exported == [(2, 0, 0x2000), (2, 0x3000, 0x1000)]
        assert [event["mapped"] for event in events["vfio-peer"]] == [True]
        peers.forget(make(memory))
        assert not iommu.mapped
        assert descriptors() == before
    peers.close()


def test_a_kernel_without_dma_bufs_is_said_once() -> None:
    iommu, events, memory = FakeIommu(), Recorded(), Memory(exports=False)
    with Peers(cast("Iommu", iommu), events) as peers:
        for _ in range(3):
            peers.add(make(memory))
            peers.remove(make(memory))
        (event,) = events["vfio-peer"]
        assert (event["mapped"], event["because"]) == (False, "no such thing")


def test_type_1_maps_no_device_memory() -> None:
    class Type1(Container):
        def __init__(self) -> None:
            pass

    events, memory = Recorded(), Memory()
    with Peers(Type1(), events) as peers:
        peers.add(make(memory))
        (event,) = events["vfio-peer"]
        assert "the group interface cannot map" in str(event["because"])
