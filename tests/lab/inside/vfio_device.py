"""Run in a lab host: use QEMU's edu device through VFIO in every way; print JSON.

Usage: vfio_device.py BDF BACKEND [BDF that is another memory-mapped device]
Source for the device: QEMU, docs/specs/edu.rst.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm._native import ffi
from vmm.errors import VmmError
from vmm.events import Events
from vmm.kvm.system import System
from vmm.vfio.backend import Backend, open_iommu
from vmm.vfio.device import VfioDevice, open_device
from vmm.vfio.function import HostFunction
from vmm.vfio.iommu import CAP_IPC_LOCK
from vmm.vfio.irq import IrqIndex
from vmm.vfio.kvm_files import KvmFiles
from vmm.vfio.trap import TrappedRegion

if TYPE_CHECKING:
    from collections.abc import Callable

IDENTIFICATION, LIVENESS, FACTORIAL, STATUS = 0x00, 0x04, 0x08, 0x20
RAISE, ACKNOWLEDGE = 0x60, 0x64
DMA_FROM, DMA_TO, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
DMA_BUFFER = 0x40000
START, TO_MEMORY = 1, 2
IOVA = 0x1_0000_0000
PATIENCE = 10.0
CAPABILITY_VERSION_3 = 0x20080522
"""<linux/capability.h>"""
libc = ctypes.CDLL(None)


class Log(Events):
    """Keeps events."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def emit(self, event: str, **fields: object) -> None:
        self.seen.append({"event": event, **fields})


def refusal(call: Callable[[], object]) -> str:
    """Return the error's class and line."""
    try:
        call()
    except VmmError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the device does not answer"
        time.sleep(0.01)


def fired(fd: int, patience: float = PATIENCE) -> bool:
    """Wait for an eventfd and read it."""
    if not select.select([fd], [], [], patience)[0]:
        return False
    os.eventfd_read(fd)
    return True


def host_address(memory: mmap.mmap) -> int:
    with ffi.from_buffer("uint8_t[]", memory) as pointer:
        return int(ffi.cast("uintptr_t", pointer))


def registers(device: VfioDevice) -> dict[str, Any]:
    """Use the device's registers, by system call and mapped."""
    bar = device.region(0)
    found: dict[str, Any] = {"identification": bar.read(IDENTIFICATION, 4)}
    with bar.map() as mapping:
        words = mapping.view.cast("I")
        words[LIVENESS // 4] = 0x1234_5678
        found["liveness"] = words[LIVENESS // 4]
        words[FACTORIAL // 4] = 10
        until(lambda: not words[STATUS // 4] & 1)
        found["factorial"] = words[FACTORIAL // 4]
        words.release()
        found["aligned"] = mapping.host_address % mapping.size == 0
    return found


def dma(device: VfioDevice) -> dict[str, Any]:
    """Make the device copy from our memory to itself, and back to another place."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    memory[:page] = os.urandom(page)
    bar = device.region(0)
    device.enable_dma()
    device.dma_map(IOVA, host_address(memory), page, writable=False)
    device.dma_map(IOVA + page, host_address(memory) + page, page)
    found: dict[str, Any] = {"mapped": device.iommu.mapped == 2 * page}
    for source, target, command in (
        (IOVA, DMA_BUFFER, START),
        (DMA_BUFFER, IOVA + page, START | TO_MEMORY),
    ):
        bar.write(DMA_FROM, 8, source)
        bar.write(DMA_TO, 8, target)
        bar.write(DMA_COUNT, 8, page)
        bar.write(DMA_COMMAND, 8, command)
        until(lambda: not bar.read(DMA_COMMAND, 8) & START)
    found["copied"] = memory[:page] == memory[page:]
    found["again"] = refusal(lambda: device.dma_map(IOVA, host_address(memory), page))
    found["unaligned"] = refusal(lambda: device.dma_map(IOVA + 4 * page + 1, 4096, page))
    with bar.map() as mapping:
        address = mapping.host_address
        found["device memory"] = refusal(lambda: device.dma_map(IOVA + 8 * page, address, page))
        if device.iommu.mapped > 2 * page:
            device.dma_unmap(IOVA + 8 * page, page)
    device.dma_unmap(IOVA, page)
    device.dma_unmap(IOVA + page, page)
    found["unmapped"] = device.iommu.mapped == 0
    found["unmapped again"] = refusal(lambda: device.dma_unmap(IOVA, page))
    found["ranges"] = [(one.base, one.end - 1) for one in device.iommu.iova_ranges()]
    return found


def interrupts(device: VfioDevice) -> dict[str, Any]:
    """Make the device interrupt us, by MSI and by INTx."""
    bar = device.region(0)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    found: dict[str, Any] = {index.name: device.irq(index).count for index in IrqIndex}
    device.irqs.signal(IrqIndex.MSI, [event])
    bar.write(RAISE, 4, 1)
    found["message"] = fired(event)
    bar.write(ACKNOWLEDGE, 4, 1)
    device.irqs.disable(IrqIndex.MSI)
    device.irqs.signal(IrqIndex.INTX, [event])
    bar.write(RAISE, 4, 2)
    found["pin"] = fired(event)
    found["masked until unmasked"] = not fired(event, 0.2)
    device.irqs.unmask(IrqIndex.INTX)
    found["level still there"] = fired(event)
    bar.write(ACKNOWLEDGE, 4, 2)
    device.irqs.unmask(IrqIndex.INTX)
    found["level gone"] = not fired(event, 0.2)
    device.irqs.disable(IrqIndex.INTX)
    found["too many"] = refusal(lambda: device.irqs.signal(IrqIndex.MSI, [event] * 99))
    os.close(event)
    return found


def refusals(device: VfioDevice) -> dict[str, str]:
    """Return the errors of impossible requests."""
    bar = device.region(0)
    return {
        "no region": refusal(lambda: device.region(3)),
        "config": refusal(lambda: device.region("config").map()),
        "unaligned": refusal(lambda: bar.map(12, 4096)),
        "past": refusal(lambda: bar.map(0, bar.size + mmap.PAGESIZE)),
        "nothing": refusal(lambda: bar.map(0, 0)),
        "read past": refusal(lambda: bar.read(bar.size, 4)),
    }


def memory_off(device: VfioDevice) -> dict[str, Any]:
    """Reset the device, which switches its memory off; return what accesses read then."""
    log = Log()
    trapped = TrappedRegion(device.region(0), 0, device.region(0).size, log)
    found: dict[str, Any] = {"before": trapped.read(IDENTIFICATION, 4)}
    found["resettable"] = device.resettable
    device.config.clear_command(2)
    found["enabled"] = device.memory_enabled
    found["off"] = [trapped.read(IDENTIFICATION, size) for size in (1, 4, 4)]
    trapped.write(LIVENESS, 4, 1)
    found["events"] = log.seen
    device.enable_memory()
    found["after"] = trapped.read(IDENTIFICATION, 4)
    return found


def second_user(bdf: str) -> str:
    """Return the error of a second process that opens the device."""
    program = (
        "import sys\n"
        "from vmm.errors import VmmError\n"
        "from vmm.vfio.device import open_device\n"
        "try:\n    open_device(sys.argv[1])\n"
        "except VmmError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, bdf], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def in_child(call: Callable[[], str]) -> str:
    """Return the result of *call* in a child process, which may give up its rights."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, call().encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def without_rights(bdf: str) -> str:
    """Return the error of a user who may not open the device."""

    def attempt() -> str:
        os.setresuid(65534, 65534, 65534)
        return refusal(lambda: open_device(bdf))

    return in_child(attempt)


def memory_limit(bdf: str, backend: Backend) -> str:
    """Return the error beyond the limit on locked memory, of root without CAP_IPC_LOCK."""

    def attempt() -> str:
        size = 4 << 20
        memory = mmap.mmap(-1, size)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
        header, sets = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
        assert not libc.capget(header, sets)
        for each in range(3):
            sets[each] &= ~(1 << CAP_IPC_LOCK)
        assert not libc.capset(header, sets)
        with open_device(bdf, backend=backend) as device:
            return refusal(lambda: device.dma_map(IOVA, host_address(memory), size))

    return in_child(attempt)


def shared(bdf: str, other: str, backend: Backend) -> dict[str, Any]:
    """Open two devices in one address space."""
    log = Log()
    with open_iommu(HostFunction.find(bdf), backend, log) as iommu:
        with open_device(bdf, iommu=iommu) as one, open_device(other, iommu=iommu) as two:
            copied = dma(one)["copied"]
            with two.region(0).map() as mapping:
                two.enable_memory()
                mapping.view[:4] = b"bar0"
                read = two.region(0).read_bytes(0, 4) == b"bar0"
                aligned = mapping.host_address % mapping.size == 0
        with open_device(other, iommu=iommu) as two:  # and one again
            again = two.region(0).size > 0
    return {
        "events": log.seen,
        "copied": copied,
        "read": read,
        "aligned": aligned,
        "again": again,
    }


def for_a_vm(bdf: str, backend: Backend) -> dict[str, Any]:
    """Open the device twice for one VM, and once more with the VM's files closed first."""
    with System.open() as system, system.create_vm() as vm:
        with KvmFiles(vm) as files:
            for _ in range(2):  # KVM must let go of it
                with open_device(bdf, backend=backend, kvm=files) as device:
                    identification = device.region(0).read(IDENTIFICATION, 4)
            device = open_device(bdf, backend=backend, kvm=files)
        device.close()
        with open_device(bdf, backend=backend):
            return {"identification": identification}


def unplugged(bdf: str, backend: Backend) -> dict[str, Any]:
    """Remove the device while it is open; a scan of the bus brings it back."""
    path = Path("/sys/bus/pci/devices") / bdf
    with open_device(bdf, backend=backend) as device:
        notice = device.notice(IrqIndex.REQ)
        assert notice is not None
        assert device.notice(IrqIndex.REQ) == notice
        remover = subprocess.Popen(["sh", "-c", f"echo 1 >{path}/remove"])
        asked = fired(notice)
        waits = remover.poll() is None and path.exists()
    remover.wait(PATIENCE)
    gone = not path.exists()
    told = refusal(lambda: open_device(bdf))
    Path("/sys/bus/pci/rescan").write_text("1")
    return {"asked": asked, "waits": waits, "gone": gone, "told": told, "back": path.exists()}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mapped_areas() -> int:
    return sum("vfio" in line for line in Path("/proc/self/maps").read_text().splitlines())


def main() -> None:
    """Print all of it."""
    bdf, backend, other = sys.argv[1], Backend(sys.argv[2]), sys.argv[3]
    log = Log()
    before = open_files()
    found: dict[str, Any] = {}
    with open_device(bdf, backend=backend, events=log) as device:
        found["driver"] = device.driver
        found["regions"] = {region.info.name: region.size for region in device.regions}
        found["second user"] = second_user(bdf)
        found["memory enabled at first"] = device.memory_enabled
        device.enable_memory()
        found["registers"] = registers(device)
        found["dma"] = dma(device)
        found["interrupts"] = interrupts(device)
        found["refusals"] = refusals(device)
        found["memory off"] = memory_off(device)
        device.region(0).map()  # left to close()
    found["left"] = [open_files() - before, mapped_areas()]
    found["events"] = log.seen
    found["closed"] = refusal(device.enable_memory)
    found["without rights"] = without_rights(bdf)
    found["memory limit"] = memory_limit(bdf, backend)
    found["shared"] = shared(bdf, other, backend)
    found["for a VM"] = for_a_vm(bdf, backend)
    found["left after sharing"] = [open_files() - before, mapped_areas()]
    found["unplugged"] = unplugged(bdf, backend)
    json.dump(found, sys.stdout)


main()
