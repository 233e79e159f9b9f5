"""Survey one host: register each kind of memory, with the flag and without, and prove its type.

All slots are scratch VMs'. On a legacy kernel some rows are the mappings that
`vmm.coherence.policy` prevents; here they are made on purpose, to be shown.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmm.coherence.policy import Stage1, region_attribute
from vmm.coherence.prove import prove
from vmm.kvm.fd import KvmError
from vmm.kvm.system import System
from vmm.kvm.vm import MemFlag
from vmm.memory import Region
from vmm.passthrough.region_memory import RegionContents
from vmm.vfio.device import open_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.coherence.prove import Contents

ORDINARY: Final = ("anonymous", "memfd", "hugetlbfs")
REGIONS: Final = (0, 2, 4)
SIZE: Final = 4 << 20
HUGE_PAGES: Final = Path("/proc/sys/vm/nr_hugepages")


@dataclass(frozen=True)
class Row:
    """One slot: the kernel's answer, and the memory type at stage 2.

    memory    anonymous, memfd, hugetlbfs, or region N
    flag      whether the Write-Back flag was set
    answer    "ok", or the errno's name
    verdict   a `MemoryType`'s value; empty if there was no slot
    """

    memory: str
    flag: bool
    answer: str
    verdict: str
    evidence: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class Memory:
    """Memory that is made a slot."""

    name: str
    host_address: int
    size: int
    contents: Contents | None


def take(bdf: str) -> list[Row]:
    """Return the rows of this host and of the device at *bdf*. Raises `HostError`."""
    with ExitStack() as owned:
        system = owned.enter_context(System.open())
        return [
            _row(system, memory, flag)
            for memory in [*_ordinary(owned), *_regions(bdf, owned)]
            for flag in (False, True)
        ]


def _row(system: System, memory: Memory, flag: bool) -> Row:  # noqa: FBT001  (a column)
    flags = int(MemFlag.WRITE_BACK) if flag else 0
    try:
        verdict = prove(
            system, memory.host_address, memory.size, flags=flags, contents=memory.contents
        )
    except KvmError as error:
        name = errno.errorcode.get(error.errno, str(error.errno))
        return Row(memory.name, flag, name, "")
    return Row(memory.name, flag, "ok", verdict.memory_type.value, verdict.evidence)


def _ordinary(owned: ExitStack) -> Iterator[Memory]:
    for name in ORDINARY:
        if name == "hugetlbfs":
            pages = SIZE // (2 << 20)
            with suppress(OSError):
                HUGE_PAGES.write_text(f"{pages}\n")
        mapping = _map(name)
        if mapping is None:
            continue
        view = memoryview(mapping)
        owned.callback(mapping.close)
        owned.callback(view.release)
        yield Memory(name, Region(0, view).host_address, SIZE, Bytes(view))


def _map(name: str) -> mmap.mmap | None:
    if name == "anonymous":
        return mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    flags = os.MFD_CLOEXEC | (os.MFD_HUGETLB if name == "hugetlbfs" else 0)
    try:
        fd = os.memfd_create(name, flags)
    except OSError:
        return None  # a kernel without hugetlbfs
    try:
        os.ftruncate(fd, SIZE)
        return mmap.mmap(fd, SIZE, mmap.MAP_SHARED)
    except OSError:
        return None  # no huge page is free
    finally:
        os.close(fd)


def _regions(bdf: str, owned: ExitStack) -> Iterator[Memory]:
    device = owned.enter_context(open_device(bdf))
    device.enable_memory()
    for index in REGIONS:
        region = device.region(index)
        mapping = region.map()
        cacheable = region_attribute(device.function.driver or "", index).stage1 is Stage1.CACHEABLE
        contents = RegionContents(region, mapping.area.base) if cacheable else None
        yield Memory(f"region {index}", mapping.host_address, mapping.size, contents)


def main() -> None:
    """Print the rows as JSON: ``python3 -m vmm.passthrough.memslot_survey BDF``."""
    rows = take(sys.argv[1])
    sys.stdout.write(json.dumps([asdict(row) for row in rows]) + "\n")


if __name__ == "__main__":
    main()
