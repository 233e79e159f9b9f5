"""vhost: the host kernel serves rings, in a thread of its own (drivers/vhost/).

/dev/vhost-net    packets, between a pair of rings and a TAP queue
/dev/vhost-vsock  sockets, between three rings (we keep the third) and AF_VSOCK
"""

from __future__ import annotations

import errno
from contextlib import ExitStack
from enum import IntEnum, unique
from typing import TYPE_CHECKING, ClassVar, Final

from vmm._native import lib
from vmm.closeable import Closeable
from vmm.fd import DeviceFile

if TYPE_CHECKING:
    from vmm.memory import GuestMemory
    from vmm.virtio.vhost.backend import Ring

BROKEN: Final = "vhost found a ring that no driver may make"


@unique
class VhostIoctl(IntEnum):
    """The ioctls of all vhost files, then those of vhost-net and of vhost-vsock."""

    VHOST_GET_FEATURES = lib.VHOST_GET_FEATURES
    VHOST_SET_FEATURES = lib.VHOST_SET_FEATURES
    VHOST_SET_OWNER = lib.VHOST_SET_OWNER
    VHOST_SET_MEM_TABLE = lib.VHOST_SET_MEM_TABLE
    VHOST_SET_VRING_NUM = lib.VHOST_SET_VRING_NUM
    VHOST_SET_VRING_ADDR = lib.VHOST_SET_VRING_ADDR
    VHOST_SET_VRING_BASE = lib.VHOST_SET_VRING_BASE
    VHOST_SET_VRING_KICK = lib.VHOST_SET_VRING_KICK
    VHOST_SET_VRING_CALL = lib.VHOST_SET_VRING_CALL
    VHOST_SET_VRING_ERR = lib.VHOST_SET_VRING_ERR

    VHOST_NET_SET_BACKEND = lib.VHOST_NET_SET_BACKEND

    VHOST_VSOCK_SET_GUEST_CID = lib.VHOST_VSOCK_SET_GUEST_CID
    VHOST_VSOCK_SET_RUNNING = lib.VHOST_VSOCK_SET_RUNNING


class VhostFile(DeviceFile):
    """One open file of a vhost driver."""

    causes: ClassVar = {
        ("VHOST_SET_OWNER", errno.ENOMEM): "the host has no memory for another thread",
        ("VHOST_SET_OWNER", errno.EAGAIN): "too many threads: raise the limit (ulimit -u)",
        ("VHOST_SET_FEATURES", errno.EOPNOTSUPP): "the driver does not know one of these features",
        ("VHOST_SET_MEM_TABLE", errno.E2BIG): (
            "guest memory has more regions than max_mem_regions of module vhost"
        ),
        ("VHOST_SET_VRING_NUM", errno.EBUSY): "the ring is in use",
        ("VHOST_SET_VRING_ADDR", errno.EINVAL): "the ring is not guest memory, or not aligned",
        ("VHOST_NET_SET_BACKEND", errno.EFAULT): "the ring is not set up, or not guest memory",
        ("VHOST_VSOCK_SET_RUNNING", errno.EFAULT): "a ring is not set up, or not guest memory",
        ("VHOST_VSOCK_SET_GUEST_CID", errno.EADDRINUSE): (
            "another machine has this context ID; use another"
        ),
        ("VHOST_VSOCK_SET_GUEST_CID", errno.EINVAL): "context IDs of guests are from 3 to 2^32 - 2",
    }

    def set_owner(self) -> None:
        """Make this process the owner, which starts the kernel's worker thread. Call once."""
        self.ioctl(VhostIoctl.VHOST_SET_OWNER)

    def features(self) -> int:
        """Return the feature bits that the driver supports."""
        return int(self.ioctl_value(VhostIoctl.VHOST_GET_FEATURES, "uint64_t", 0)[0])

    def start(self, features: int, memory: GuestMemory) -> None:
        """Set guest memory, and those of *features* that the driver supports."""
        features &= self.features()
        self.ioctl_value(
            VhostIoctl.VHOST_SET_FEATURES, "uint64_t", features, features=hex(features)
        )
        regions = [
            {
                "guest_phys_addr": region.base,
                "memory_size": region.size,
                "userspace_addr": region.host_address,
            }
            for region in memory
        ]
        table = {"nregions": len(regions), "regions": regions}
        self.ioctl_value(
            VhostIoctl.VHOST_SET_MEM_TABLE, "struct vhost_memory", table, nregions=len(regions)
        )

    def set_ring(self, index: int, ring: Ring) -> None:
        """Describe *ring* to the driver, which does not serve it yet."""
        self._state(VhostIoctl.VHOST_SET_VRING_NUM, index, ring.size)
        self._state(VhostIoctl.VHOST_SET_VRING_BASE, index, ring.base)
        addresses = {
            "index": index,
            "desc_user_addr": ring.host.descriptors,
            "avail_user_addr": ring.host.driver,
            "used_user_addr": ring.host.device,
        }
        self.ioctl_struct(VhostIoctl.VHOST_SET_VRING_ADDR, "vhost_vring_addr", **addresses)
        self.set_file(VhostIoctl.VHOST_SET_VRING_CALL, index, ring.call)
        self.set_file(VhostIoctl.VHOST_SET_VRING_ERR, index, ring.err)
        self.set_file(VhostIoctl.VHOST_SET_VRING_KICK, index, ring.kick)

    def _state(self, request: VhostIoctl, index: int, number: int) -> None:
        self.ioctl_struct(request, "vhost_vring_state", index=index, num=number)

    def set_file(self, request: VhostIoctl, index: int, fd: int) -> None:
        """Give ring *index* the file for *request*; -1 for none."""
        self.ioctl_struct(request, "vhost_vring_file", index=index, fd=fd)


class KernelBackend(Closeable):
    """The kernel as a `VhostBackend`, but for `start_ring` and `stop_ring`. Owns *count* files."""

    resets_rings = True

    def __init__(self, path: str, kind: type[VhostFile], count: int, option: str) -> None:
        self._owned = ExitStack()
        self._files: list[VhostFile] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            for _ in range(count):
                file = self._owned.enter_context(kind(path, option))
                file.set_owner()
                self._files.append(file)
            undo.pop_all()

    def features(self) -> int:
        """Return the feature bits that the kernel supports."""
        return self._files[0].features()

    def start(self, features: int, memory: GuestMemory) -> None:
        """Set features and guest memory for a driver."""
        for file in self._files:
            file.start(features, memory)

    def ring_error(self, index: int) -> str:  # noqa: ARG002
        """Return what the kernel's err eventfd says: no more than that the ring is broken."""
        return BROKEN

    def stop(self) -> None:
        """Do nothing: the rings were stopped, and all else is set anew by `start`."""

    def close(self) -> None:
        """Close the files. Idempotent."""
        self._owned.close()
