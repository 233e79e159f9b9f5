"""The cases of the memory-slot survey: memory of each kind, and what is done to it.

A case is a generator that yields one `Memory` and cleans up. What is done to a mapping after its
slot was made is `Memory.then`; each such case has mappings of its own.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmm._native import lib
from vmm.coherence import stage1
from vmm.coherence.capability import CAPABILITY
from vmm.coherence.policy import Stage1, region_attribute
from vmm.coherence.scratch import RANGE
from vmm.coherence.udmabuf import Udmabuf
from vmm.kvm.fd import KvmError
from vmm.kvm.vm import MemFlag
from vmm.memory import Region
from vmm.passthrough.region_memory import RegionContents
from vmm.vfio.fd import VfioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm.coherence.capability import HostCapability
    from vmm.coherence.policy import Attribute
    from vmm.coherence.prove import Contents
    from vmm.coherence.scratch import ScratchGuest
    from vmm.kvm.system import System
    from vmm.kvm.vm import Vm
    from vmm.vfio.device import VfioDevice

SIZE: Final = 4 << 20
"""Bytes of each ordinary memory."""
HUGE_PAGES: Final = Path("/proc/sys/vm/nr_hugepages")
NO_FLAGS: Final = MemFlag(0)
BARS: Final = (0, 2, 4)
"""The regions that are surveyed: 64-bit BARs."""
SLOT: Final = 1
"""The scratch guest's slot of the memory under test."""
MMAP_SHARED: Final = 1 | 2
"""GUEST_MEMFD_FLAG_MMAP and GUEST_MEMFD_FLAG_INIT_SHARED (Linux 6.18)."""


class StepError(Exception):
    """A step before or after the slot's ioctl failed: *what*, with errno *number*."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(what)
        self.what = what
        self.number = number


@dataclass(frozen=True)
class Memory:
    """Memory that is made a slot.

    contents  how to read and write it past stage 2; None: it may not be written
    flags     KVM_MEM_* beside the Write-Back flag
    register  how the slot is made, if not by KVM_SET_USER_MEMORY_REGION with these
    then      what is done once the slot is there; may raise `StepError` or `KvmError`
    offset    the page that the guest touches, in bytes; None: some of all
    """

    host_address: int
    size: int
    contents: Contents | None = None
    flags: MemFlag = NO_FLAGS
    register: Callable[[Vm, int], None] | None = None
    then: Callable[[ScratchGuest], None] | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Case:
    """A row's name, and the context manager that makes its memory.

    cacheable  whether the host's mapping is: Device or NC at stage 2 is then a hazard
    """

    name: str
    make: Callable[[], Any]
    cacheable: bool = True


class Bytes:
    """The contents of ordinary memory, for `vmm.coherence.verdict`."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes."""
        return bytes(self._view[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Write *data*."""
        self._view[offset : offset + len(data)] = data


@contextmanager
def _step(what: str) -> Iterator[None]:
    """Make an error of the system's in the body a `StepError` of *what*."""
    try:
        yield
    except (OSError, KvmError, VfioError) as error:
        raise StepError(what, error.errno or 0) from error


def _done(what: str, result: int) -> None:
    if result:
        raise StepError(what, -result)


# --- memory that the kernel manages ------------------------------------------------------------


@contextmanager
def _mapped(mapping: mmap.mmap, **more: Any) -> Iterator[Memory]:
    with mapping, memoryview(mapping) as view:
        contents = None if more.get("flags", NO_FLAGS) & MemFlag.READONLY else Bytes(view)
        yield Memory(Region(0, view).host_address, len(view), contents, **more)


def _anonymous(*, size: int = SIZE, **more: Any) -> Any:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return _mapped(mmap.mmap(-1, size, flags), **more)


def _memfd(*, huge: bool) -> Any:
    if huge:
        with suppress(OSError):
            HUGE_PAGES.write_text(f"{SIZE // (2 << 20)}\n")
    with _step("mmap"):  # a kernel without hugetlbfs, or without a free page
        fd = os.memfd_create("survey", os.MFD_CLOEXEC | (os.MFD_HUGETLB if huge else 0))
        try:
            os.ftruncate(fd, SIZE)
            return _mapped(mmap.mmap(fd, SIZE, mmap.MAP_SHARED))
        finally:
            os.close(fd)


@contextmanager
def _udmabuf() -> Iterator[Memory]:
    with _step("mmap"):
        buffer = Udmabuf(SIZE)
    with buffer:
        yield Memory(buffer.host_address, SIZE, Bytes(buffer.view))


@contextmanager
def _packet_ring() -> Iterator[Memory]:
    """Map a packet socket's ring: VM_MIXEDMAP of ordinary pages (net/packet/af_packet.c)."""
    block, blocks = 64 << 10, SIZE >> 16
    ring = struct.pack("4I", block, blocks, 2048, block // 2048 * blocks)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packets:
        with _step("mmap"):
            packets.setsockopt(263, 5, ring)  # SOL_PACKET, PACKET_RX_RING
            mapping = mmap.mmap(packets.fileno(), SIZE, mmap.MAP_SHARED)
        with _mapped(mapping) as memory:
            yield memory


@contextmanager
def _dax_file(directory: Path) -> Iterator[Memory]:
    """Map a file of a file system that is mounted with DAX: ZONE_DEVICE pages."""
    with _step("open"), (directory / "survey").open("w+b") as file:
        (directory / "survey").unlink()
        os.posix_fallocate(file.fileno(), 0, SIZE)
        mapping = mmap.mmap(file.fileno(), SIZE, mmap.MAP_SHARED)
    with _mapped(mapping) as memory:
        yield memory


def dax_case(directory: Path) -> Case:
    """Return the case of a file in *directory*, a file system that is mounted with DAX."""
    return Case("DAX file", partial(_dax_file, directory))


@contextmanager
def _guest_memfd() -> Iterator[Memory]:
    with ExitStack() as owned:

        def register(vm: Vm, flags: int) -> None:
            memfd = owned.enter_context(vm.create_guest_memfd(SIZE, MMAP_SHARED))
            mapping = owned.enter_context(mmap.mmap(memfd.fileno(), SIZE, mmap.MAP_SHARED))
            view = owned.enter_context(memoryview(mapping))
            address = Region(0, view).host_address
            flags |= MemFlag.GUEST_MEMFD
            vm.set_user_memory_region2(
                SLOT, flags, RANGE, SIZE, address, guest_memfd=memfd.fileno()
            )

        yield Memory(0, SIZE, register=register)


def _prefault(guest: ScratchGuest) -> None:
    request = 3 << 30 | 64 << 16 | 0xAE << 8 | 0xD5  # KVM_PRE_FAULT_MEMORY, _IOWR, 64 bytes
    with _step("pre-fault"):
        fcntl.ioctl(guest.vcpu.fileno(), request, struct.pack("QQQ40x", RANGE, SIZE, 0))


ORDINARY: Final = (
    Case("anonymous", _anonymous),
    Case("anonymous, logged", partial(_anonymous, flags=MemFlag.LOG_DIRTY_PAGES)),
    Case("anonymous, read-only", partial(_anonymous, flags=MemFlag.READONLY)),
    Case("anonymous, pre-faulted", partial(_anonymous, then=_prefault)),
    Case("memfd", partial(_memfd, huge=False)),
    Case("hugetlbfs", partial(_memfd, huge=True)),
    Case("packet ring (MIXEDMAP)", _packet_ring),
    Case("guest_memfd", _guest_memfd),
    Case("udmabuf (PFNMAP)", _udmabuf),
)


# --- regions of a device -----------------------------------------------------------------------


class Regions:
    """The cases of an open device's regions, whose memory is on.

    Only what is measured to be memory is written, and what is executed stores nothing: the slots of
    other mappings are read-only, here or by the survey.
    """

    def __init__(self, device: VfioDevice, system: System, capability: HostCapability) -> None:
        self._device = device
        self._system = system
        self._capability = capability
        self._attributes: dict[int, Attribute] = {}

    def attribute(self, index: int) -> Attribute:
        """Return the measured attribute of region *index*. Raises `HostError`."""
        if index not in self._attributes:
            region = self._device.region(index)
            prior = region_attribute(self._device.function.driver or "", index)
            with region.map() as mapping:
                area = stage1.Area(*mapping.area, mapping.host_address)
                self._attributes[index] = stage1.measure(
                    prior, self._system, [area], self._capability
                )
        return self._attributes[index]

    def cacheable(self, index: int) -> bool:
        """Whether the host maps region *index* cacheable."""
        return self.attribute(index).stage1 is Stage1.CACHEABLE

    @contextmanager
    def plain(self, index: int, **more: Any) -> Iterator[Memory]:
        """Yield the whole region."""
        region = self._device.region(index)
        with region.map() as mapping:
            flags = more.get("flags", NO_FLAGS)
            writable = self.attribute(index).may_be_written and not flags & MemFlag.READONLY
            contents = RegionContents(region, mapping.area.base) if writable else None
            yield Memory(mapping.host_address, mapping.size, contents, **more)

    @contextmanager
    def asked(self, index: int) -> Iterator[Memory]:
        """Yield a part of the region; its slot is made after KVM_ENABLE_CAP of capability 243."""
        with self._part(index) as address:

            def register(vm: Vm, flags: int) -> None:
                with _step("enable"):
                    vm.enable_cap(int(CAPABILITY))
                vm.set_user_memory_region(SLOT, flags, RANGE, SIZE, address)

            yield Memory(address, SIZE, flags=MemFlag.READONLY, register=register)

    @contextmanager
    def changed(self, index: int, change: Callable[[int], None]) -> Iterator[Memory]:
        """Yield a part of the region; *change* gets its address once it is a slot."""
        with self._part(index) as address:
            yield Memory(
                address, SIZE, flags=MemFlag.READONLY, then=lambda _: change(address), offset=0
            )

    @contextmanager
    def replaced(self, first: int | None, second: int | None) -> Iterator[Memory]:
        """Yield a part of a region, which another's replaces under the slot; None: anonymous."""
        with self._part(first) as address, self._part(second) as other:
            yield Memory(
                address,
                SIZE,
                flags=MemFlag.READONLY,
                then=lambda _: _move(other, address),
                offset=0,
            )

    @contextmanager
    def _part(self, index: int | None) -> Iterator[int]:
        """Yield the address of a mapping of `SIZE` bytes."""
        if index is None:
            with _anonymous() as memory:
                yield memory.host_address
        else:
            with self._device.region(index).map(0, SIZE) as mapping:
                yield mapping.host_address

    @contextmanager
    def beside(self, index: int, *, first: bool) -> Iterator[Memory]:
        """Yield one range of two VMAs, anonymous memory and a part of the region; touch the first.

        *first*: the region is.
        """
        with _anonymous(size=2 * SIZE) as both, self._part(index) as part:
            _move(part, both.host_address + (0 if first else SIZE))
            yield replace(both, contents=None, flags=MemFlag.READONLY, offset=0)

    @contextmanager
    def dmabuf(self, index: int) -> Iterator[Memory]:
        """Yield a dma-buf of a part of the region."""
        with _step("export"):
            fd = self._device.export(index, 0, SIZE)
        try:
            with _step("mmap"):
                mapping = mmap.mmap(fd, SIZE, mmap.MAP_SHARED)
        finally:
            os.close(fd)
        with _mapped(mapping) as memory:
            yield replace(memory, contents=None)

    @contextmanager
    def dev_mem(self, index: int) -> Iterator[Memory]:
        """Yield a private mapping of a BAR by /dev/mem: PFNMAP, copied on write."""
        lines = (self._device.function.path / "resource").read_text().splitlines()
        base = int(lines[index].split()[0], 16)
        with _step("mmap"), Path("/dev/mem").open("rb") as file:
            mapping = mmap.mmap(file.fileno(), SIZE, mmap.MAP_PRIVATE, offset=base)
        with _mapped(mapping) as memory:
            yield replace(memory, contents=None)

    def case(self, index: int) -> Case:
        """Return the case of region *index*, whole."""
        return Case(f"region {index}", partial(self.plain, index), self.cacheable(index))

    def cases(self) -> Iterator[Case]:
        """Yield each region, and what is particular to one that is mapped cacheable."""
        found = [region.index for region in self._device.regions if region.index in BARS]
        yield from map(self.case, found)
        cached = next((index for index in found if self.cacheable(index)), None)
        if cached is None:
            return
        name, other = f"region {cached}", found[0]
        logged, read_only = MemFlag.LOG_DIRTY_PAGES, MemFlag.READONLY
        for what, make in (
            (f"{name}, VM asked", partial(self.asked, cached)),
            (f"{name}, logged", partial(self.plain, cached, flags=logged)),
            (f"{name}, logged later", partial(self.plain, cached, then=_log)),
            (f"{name}, read-only", partial(self.plain, cached, flags=read_only)),
            (f"{name}, then PROT_READ", partial(self.changed, cached, _allow_reads)),
            (f"{name}, then PROT_NONE", partial(self.changed, cached, _allow_nothing)),
            (f"{name}, then anonymous", partial(self.replaced, cached, None)),
            (f"anonymous, then {name}", partial(self.replaced, None, cached)),
            (f"region {other}, then {name}", partial(self.replaced, other, cached)),
            (f"anonymous beside {name}", partial(self.beside, cached, first=False)),
            (f"{name} beside anonymous", partial(self.beside, cached, first=True)),
            (f"dma-buf of {name}", partial(self.dmabuf, cached)),
            (f"dma-buf of region {other}", partial(self.dmabuf, other)),
        ):
            yield Case(what, make)
        for what, make in (
            (f"{name}, then region {other}", partial(self.replaced, cached, other)),
            (f"/dev/mem of region {other}, private", partial(self.dev_mem, other)),
        ):
            yield Case(what, make, cacheable=False)


def _move(source: int, target: int) -> None:
    _done("mremap", lib.pyvmm_move(source, SIZE, target))


def _allow_reads(address: int) -> None:
    _done("mprotect", lib.pyvmm_protect(address, SIZE, mmap.PROT_READ))


def _allow_nothing(address: int) -> None:
    _done("mprotect", lib.pyvmm_protect(address, SIZE, 0))


def _log(guest: ScratchGuest) -> None:
    """Turn on dirty logging for the slot that is there. Raises `KvmError`."""
    guest.set_flags(guest.flags | MemFlag.LOG_DIRTY_PAGES)
