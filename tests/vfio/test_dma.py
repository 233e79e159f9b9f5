"""Guest RAM in an IOMMU's address space."""

from __future__ import annotations

import pytest

from vmm.address_range import AddressRange
from vmm.errors import HostError
from vmm.memory import Mapping, Region
from vmm.vfio import iommu as iommu_module
from vmm.vfio.dma import GuestDma
from vmm.vfio.fd import VfioFd
from vmm.vfio.function import HostFunction
from vmm.vfio.iommu import Iommu

MIB = 1 << 20
RAM = 0x4000_0000


class Fake(Iommu):
    """An IOMMU that keeps a list, and has no room above *top*."""

    name = "fake"

    def __init__(self, top: int = (1 << 48) - 1) -> None:
        super().__init__()
        self.there: dict[int, tuple[int, int]] = {}
        self.ranges = [AddressRange(0, 0x800_0000), AddressRange.to(0x810_0000, top + 1)]

    def _attach(self, function: HostFunction) -> VfioFd:
        raise NotImplementedError

    def detach(self, device: VfioFd) -> None:
        raise NotImplementedError

    def iova_ranges(self) -> list[AddressRange]:
        return self.ranges

    def _map(self, iova: int, host_address: int, size: int, *, writable: bool) -> None:
        assert writable
        if iova == 13 * MIB:
            raise HostError("no more")
        self.there[iova] = (host_address, size)

    def _unmap(self, iova: int, size: int) -> None:
        assert self.there.pop(iova)[1] == size

    def _files(self) -> list[VfioFd]:
        return []

    def _close(self) -> None:
        pass


def test_ram_is_mapped_at_the_guests_addresses_until_closed() -> None:
    iommu = Fake()
    with Mapping.anonymous(4 * MIB) as memory:
        low, high = Region(RAM, memory.view[:MIB]), Region(1 << 32, memory.view[MIB:])
        with GuestDma(iommu, [low, high]) as dma:
            assert iommu.there == {
                RAM: (low.host_address, MIB),
                1 << 32: (high.host_address, 3 * MIB),
            }
            assert dma.size == iommu.mapped == 4 * MIB
        assert not iommu.there
        dma.close()
        low.view.release()
        high.view.release()


def test_what_was_mapped_before_a_failure_is_unmapped() -> None:
    iommu = Fake()
    iommu.ranges = [AddressRange(0, (1 << 40) + 1)]
    with Mapping.anonymous(2 * MIB) as memory:
        one, other = Region(RAM, memory.view[:MIB]), Region(13 * MIB, memory.view[MIB:])
        with pytest.raises(HostError, match="no more"):
            GuestDma(iommu, [one, other])
        assert not iommu.there
        one.view.release()
        other.view.release()


@pytest.mark.parametrize(("base", "top"), [(0x7F0_0000, 1 << 48), (RAM, RAM + MIB)])
def test_ram_at_addresses_that_the_iommu_lacks_is_refused(base: int, top: int) -> None:
    iommu = Fake(top)
    with Mapping.anonymous(2 * MIB) as memory:
        with pytest.raises(HostError, match=r"not within what this host's IOMMU can map"):
            GuestDma(iommu, [Region(base, memory.view)])
        assert not iommu.there


def test_the_limit_on_locked_memory_is_checked_for_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error comes before the first byte is pinned, and has the limit that is needed."""
    monkeypatch.setattr(iommu_module, "_limit", lambda: MIB)
    iommu = Fake()
    with Mapping.anonymous(4 * MIB) as memory:
        with pytest.raises(HostError, match=r"needs 4 MiB of memory locked.*ulimit -l 4096"):
            GuestDma(iommu, [Region(RAM, memory.view)])
        assert not iommu.there
        monkeypatch.setattr(iommu_module, "_limit", lambda: None)
        iommu = Fake()
        with GuestDma(iommu, [Region(RAM, memory.view)]):
            assert iommu.mapped == 4 * MIB
