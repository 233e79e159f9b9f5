"""Run in a lab host: make faults with VFIO, iommufd, mmap, vhost and TAP; print what was said.

Usage: vfio_faults.py BDF BACKEND

Prints JSON: for each fault the errno, and the first cause of the error.
"""

from __future__ import annotations

import json
import mmap
import sys
from errno import errorcode
from typing import TYPE_CHECKING

from vmm._native import ffi, lib
from vmm.address_range import AddressRange
from vmm.errors import KernelError
from vmm.vfio.backend import Backend
from vmm.vfio.device import VfioDevice, open_device
from vmm.vfio.irq import IrqIndex
from vmm.vfio.mapping import RegionMapping
from vmm.virtio.net.tap import TapQueue, TunIoctl
from vmm.virtio.vhost.kernel import VhostFile, VhostIoctl

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = mmap.PAGESIZE
IOVA = 0x1_0000_0000
DOORBELLS = 0x800_0000
"""Where Linux's SMMU driver maps the MSI doorbell for devices."""


class Vhost(VhostFile):
    """A vhost driver's file."""

    module = "vhost_net"


def host_address(memory: mmap.mmap) -> int:
    """Return the address of *memory* in this process."""
    with ffi.from_buffer("uint8_t[]", memory) as pointer:
        return int(ffi.cast("uintptr_t", pointer))


def vfio(device: VfioDevice) -> dict[str, Callable[[], object]]:
    """Return faults of *device*, its IOMMU and its regions."""
    memory = mmap.mmap(-1, 4 * PAGE)
    address = host_address(memory)
    empty = mmap.mmap(-1, PAGE)
    nowhere = host_address(empty)
    empty.close()
    bar = device.region(0)
    mapped = bar.map()
    device.dma_map(IOVA, address, 2 * PAGE)

    def mapping(number: int, offset: int, size: int) -> None:
        region = device.region(number) if number < 7 else device.region("config")
        area = AddressRange(offset, size)
        RegionMapping(device._open_fd, str(region), region.info.offset, area, writable=True)

    return {
        "mapped twice": lambda: device.dma_map(IOVA, address, PAGE),
        "IOVA not aligned": lambda: device.dma_map(IOVA + 8 * PAGE + 1, address, PAGE),
        "IOVA of the doorbells": lambda: device.dma_map(DOORBELLS, address, PAGE),
        "nothing is mapped behind it": lambda: device.dma_map(IOVA * 2, nowhere, PAGE),
        "a BAR is behind it": lambda: device.dma_map(IOVA * 3, mapped.host_address, PAGE),
        "nothing to unmap": lambda: device.dma_unmap(IOVA * 4, PAGE),
        "unmap splits": lambda: device.dma_unmap(IOVA, PAGE),
        "more vectors than there are": lambda: device.irqs.signal(IrqIndex.MSI, [0] * 99),
        "mmap not aligned": lambda: mapping(0, 12, PAGE),
        "mmap of configuration space": lambda: mapping(7, 0, PAGE),
        "mmap past the region": lambda: mapping(0, bar.size, PAGE),
    }


def vhost() -> dict[str, Callable[[], object]]:
    """Return faults of vhost's drivers."""
    fresh, owned = (Vhost("/dev/vhost-net", "--net") for _ in range(2))
    owned.set_owner()
    sockets = [Vhost("/dev/vhost-vsock", "--vsock") for _ in range(2)]
    for each in sockets:
        each.set_owner()

    def state(file: Vhost, request: VhostIoctl, index: int, num: int) -> None:
        file.ioctl_struct(request, "vhost_vring_state", index=index, num=num)

    def cid(file: Vhost, number: int) -> None:
        file.ioctl_value(VhostIoctl.VHOST_VSOCK_SET_GUEST_CID, "uint64_t", number)

    def same_cid() -> None:
        for each in sockets:
            cid(each, 4711)

    def address(value: int) -> None:
        owned.ioctl_struct(
            VhostIoctl.VHOST_SET_VRING_ADDR,
            "vhost_vring_addr",
            index=0,
            desc_user_addr=value,
            avail_user_addr=value,
            used_user_addr=value,
        )

    return {
        "memory of no owner": lambda: fresh.ioctl_value(
            VhostIoctl.VHOST_SET_MEM_TABLE, "struct vhost_memory", {"nregions": 0, "regions": []}
        ),
        "second owner": owned.set_owner,
        "unknown feature": lambda: owned.ioctl_value(
            VhostIoctl.VHOST_SET_FEATURES, "uint64_t", 1 << 60
        ),
        "ring of 3": lambda: state(owned, VhostIoctl.VHOST_SET_VRING_NUM, 0, 3),
        "ring not aligned": lambda: address(0x1001),
        "backend before the ring": lambda: owned.ioctl_struct(
            VhostIoctl.VHOST_NET_SET_BACKEND, "vhost_vring_file", index=0, fd=0
        ),
        "context ID of the host": lambda: cid(sockets[0], 2),
        "context ID twice": same_cid,
    }


def tap() -> dict[str, Callable[[], object]]:
    """Return faults of TAP interfaces."""
    queues = [TapQueue("/dev/net/tun", "--net tap") for _ in range(3)]
    flags = lib.IFF_TAP | lib.IFF_NO_PI

    def twice() -> None:
        for each in queues[:2]:
            each.interface(TunIoctl.TUNSETIFF, "faulty0", flags)

    return {
        "interface is in use": twice,
        "no TAP": lambda: queues[2].interface(TunIoctl.TUNSETIFF, "lo", flags),
    }


def main() -> None:
    """Make the faults, and print what was said of each."""
    bdf, backend = sys.argv[1:]
    found: dict[str, object] = {}
    with open_device(bdf, backend=Backend(backend)) as device:
        device.enable_memory()
        for name, fault in {**vfio(device), **vhost(), **tap()}.items():
            try:
                fault()
            except KernelError as error:
                first = error.causes[0].what if error.causes else ""
                found[name] = [errorcode[error.errno], first, error.message]
            else:
                found[name] = ["", "", "nothing was refused"]
    json.dump(found, sys.stdout)


main()
