"""An I/O address space that devices do DMA in: what both back ends have in common."""

from __future__ import annotations

import errno
import resource
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from vmm.closeable import Closeable
from vmm.errors import HostError
from vmm.vfio.assignability import obstacle
from vmm.vfio.fd import VfioError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.address_range import AddressRange
    from vmm.vfio.fd import VfioFd
    from vmm.vfio.function import HostFunction
    from vmm.vfio.kvm_files import KvmFiles


class Iommu(Closeable, ABC):
    """One I/O address space, and the devices attached to it. `with` closes it."""

    name: ClassVar[str]

    def __init__(self, kvm: KvmFiles | None = None) -> None:
        """Create one. If there is a VM, *kvm* tells it of the devices' files."""
        self._mapped: dict[int, int] = {}
        self._kvm = kvm
        self._limit = _limit()  # now: a confined process cannot ask, and has no capability

    @abstractmethod
    def _attach(self, function: HostFunction) -> VfioFd: ...

    @abstractmethod
    def detach(self, device: VfioFd) -> None:
        """Close a device that `attach` returned, and what was opened for it."""

    @abstractmethod
    def iova_ranges(self) -> list[AddressRange]:
        """Return the I/O virtual addresses that can be mapped: fewer with each device.

        Raises `VfioError`.
        """

    @abstractmethod
    def _map(self, iova: int, host_address: int, size: int, *, writable: bool) -> None: ...

    @abstractmethod
    def _unmap(self, iova: int, size: int) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    def attach(self, function: HostFunction) -> VfioFd:
        """Open a device and attach it. Raises `HostError`, which names what is in the way."""
        try:
            return self._attach(function)
        except VfioError as error:
            raise self._explain(function, error) from error

    def _explain(self, function: HostFunction, error: VfioError) -> HostError:
        """Return the error for a device that cannot be attached, with who uses it, if known."""
        if error.errno == errno.ENOMEM:
            return self._memory_limit(0) or error
        if error.errno in (errno.EPERM, errno.EBUSY, errno.EINVAL, errno.ENODEV):
            return obstacle(function) or error
        return error

    @property
    def mapped(self) -> int:
        """How many bytes are mapped, and so pinned."""
        return sum(self._mapped.values())

    def maps(self, iova: int) -> bool:
        """Tell whether a mapping begins at *iova*."""
        return iova in self._mapped

    def dma_map(self, iova: int, host_address: int, size: int, *, writable: bool = True) -> None:
        """Map *size* bytes at *host_address* of this process for the devices, at *iova*.

        All are multiples of the IOMMU's page. The memory is pinned: it stays in RAM and counts
        as locked. Device memory (a `RegionMapping`) is not for this: iommufd refuses it, and type 1
        would let devices reach another's BAR after that has gone. Raises `HostError`.
        """
        try:
            self._map(iova, host_address, size, writable=writable)
        except VfioError as error:
            if error.errno == errno.ENOMEM and (limited := self._memory_limit(size)):
                raise limited from error
            raise
        self._mapped[iova] = size

    def dma_map_file(self, iova: int, fd: int, size: int) -> None:
        """Map the dma-buf *fd* of a device's memory for the devices, at *iova*.

        `VfioDevice.export` makes the dma-buf. The kernel unmaps it when that device's memory is
        switched off. `dma_unmap` undoes it. Raises `HostError`.
        """
        raise HostError(
            f"the {self.name} interface cannot map the {size:#x} bytes of device memory in "
            f"dma-buf {fd} at {iova:#x}",
            "use a host with iommufd",
        )

    def check_limit(self, size: int) -> None:
        """Raise `HostError` if *size* more bytes are more than this process may lock.

        A caller that maps in parts, or much, learns it before the first mapping.
        """
        if limited := self._memory_limit(size):
            raise limited

    def dma_unmap(self, iova: int, size: int) -> None:
        """Undo one or several whole `dma_map`. Raises `VfioError`."""
        self._unmap(iova, size)
        for start in [start for start in self._mapped if iova <= start < iova + size]:
            del self._mapped[start]

    def connect(self, kvm: KvmFiles | None) -> None:
        """Tell *kvm* of the open files, and of those opened later; None: its VM has gone.

        A machine has a new VM after each reset. Raises `KvmError`.
        """
        self._kvm = kvm
        for file in self._files() if kvm is not None else ():
            self._announce(file)

    @abstractmethod
    def _files(self) -> Sequence[VfioFd]:
        """Return the files that KVM has to know."""

    def _announce(self, file: VfioFd) -> None:
        if self._kvm:
            self._kvm.add(file.fileno())

    def _withdraw(self, file: VfioFd) -> None:
        """Make KVM release a file, which would stay open otherwise."""
        if self._kvm and file.fileno() >= 0:
            self._kvm.remove(file.fileno())

    def close(self) -> None:
        """Undo all mappings and close. The devices must be closed. Idempotent."""
        self._mapped.clear()
        self._close()

    def _memory_limit(self, size: int) -> HostError | None:
        """Return the error for *size* more bytes if the limit on locked memory is the cause."""
        limit, needed = self._limit, self.mapped + size
        if limit is None or needed <= limit:
            return None
        return HostError(
            f"DMA needs {_mebibytes(needed)} of memory locked, and this process's limit is "
            f"{_mebibytes(limit)}",
            f"raise it (ulimit -l {-(-needed // 1024)}, or LimitMEMLOCK= of a systemd unit)",
        )


CAP_IPC_LOCK: Final = 14
"""Its bit in a capability set (<linux/capability.h>): no limit on locked memory applies."""


def _limit(status: Path = Path("/proc/self/status")) -> int | None:
    """Return how many bytes this process may lock; None: as many as it likes.

    A confined process has no capability, but root's has no limit either (cdefs/isolate.c).
    """
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:") and int(line.split()[1], 16) >> CAP_IPC_LOCK & 1:
            return None
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if limit == resource.RLIM_INFINITY else limit


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.4g} MiB"
