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
from vmm.cause import Cause
from vmm.closeable import Closeable
from vmm.fd import DeviceFile

if TYPE_CHECKING:
    from vmm.cause import Table
    from vmm.memory import GuestMemory
    from vmm.virtio.vhost.backend import Ring

_C: Final = "drivers/vhost/vhost.c"

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

    causes: ClassVar[Table] = {
        ("VHOST_SET_OWNER", errno.EBUSY): (
            Cause("the file has an owner already", "open it anew", f"vhost_dev_set_owner ({_C})"),
        ),
        ("VHOST_SET_OWNER", errno.ENOMEM): (
            Cause("the host has no memory for another thread", "", f"vhost_worker_create ({_C})"),
        ),
        ("VHOST_SET_OWNER", errno.EAGAIN): (
            Cause("too many threads", "raise the limit (ulimit -u)", f"vhost_worker_create ({_C})"),
        ),
        ("VHOST_SET_FEATURES", errno.EOPNOTSUPP): (
            Cause(
                "the driver does not know one of these features",
                "ask for those of VHOST_GET_FEATURES",
                "vhost_net_ioctl (drivers/vhost/net.c)",
            ),
        ),
        ("VHOST_SET_MEM_TABLE", errno.E2BIG): (
            Cause(
                "guest memory has more regions than max_mem_regions of module vhost",
                "raise it",
                f"vhost_set_memory ({_C})",
                certain=True,
            ),
        ),
        ("VHOST_SET_VRING_NUM", errno.EBUSY): (
            Cause("the ring is in use", "stop it first", f"vhost_vring_set_num ({_C})"),
        ),
        ("VHOST_SET_VRING_NUM", errno.EINVAL): (
            Cause(
                "a ring's size is a power of two, up to 32768", "", f"vhost_vring_set_num ({_C})"
            ),
        ),
        ("VHOST_SET_VRING_ADDR", errno.EINVAL): (
            Cause(
                "the ring is not aligned, or not guest memory",
                "16 bytes for descriptors, 2 for the available ring, 4 for the used one",
                f"vhost_vring_set_addr ({_C})",
            ),
        ),
        ("VHOST_SET_VRING_BASE", errno.EBUSY): (
            Cause("the ring is in use", "stop it first", f"vhost_vring_ioctl ({_C})"),
        ),
        ("VHOST_NET_SET_BACKEND", errno.ENOTSOCK): (
            Cause(
                "the descriptor is not a TAP's queue, nor a packet socket",
                "",
                "get_socket (drivers/vhost/net.c)",
            ),
        ),
        ("VHOST_NET_SET_BACKEND", errno.EFAULT): (
            Cause(
                "the ring is not set up, or not guest memory",
                "VHOST_SET_MEM_TABLE and VHOST_SET_VRING_ADDR come first",
                "vhost_net_set_backend (drivers/vhost/net.c)",
            ),
        ),
        ("VHOST_VSOCK_SET_RUNNING", errno.EFAULT): (
            Cause(
                "a ring is not set up, or not guest memory",
                "VHOST_SET_MEM_TABLE and VHOST_SET_VRING_ADDR come first",
                "vhost_vsock_start (drivers/vhost/vsock.c)",
            ),
        ),
        ("VHOST_VSOCK_SET_GUEST_CID", errno.EADDRINUSE): (
            Cause(
                "another machine has this context ID",
                "use another",
                "vhost_vsock_set_cid (drivers/vhost/vsock.c)",
                certain=True,
            ),
        ),
        ("VHOST_VSOCK_SET_GUEST_CID", errno.EINVAL): (
            Cause(
                "context IDs of guests are from 3 to 2^32 - 2",
                "",
                "vhost_vsock_set_cid (drivers/vhost/vsock.c)",
                certain=True,
            ),
        ),
        **{
            (call, errno.EPERM): (
                Cause(
                    "another process owns the file, or none does (VHOST_SET_OWNER)",
                    "",
                    f"vhost_dev_check_owner ({_C})",
                ),
            )
            for call in ("VHOST_SET_MEM_TABLE", "VHOST_SET_VRING_ADDR", "VHOST_NET_SET_BACKEND")
        },
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
                self._files.append(self._owned.enter_context(kind(path, option)))
            undo.pop_all()
        self._owns = False

    def features(self) -> int:
        """Return the feature bits that the kernel supports."""
        return self._files[0].features()

    def start(self, features: int, memory: GuestMemory) -> None:
        """Set features and guest memory for a driver.

        The first start makes this process the files' owner. The kernel's workers are threads of
        the owner since Linux 6.4, and a process with threads can make no user namespace.
        """
        for file in self._files:
            if not self._owns:
                file.set_owner()
            file.start(features, memory)
        self._owns = True

    def ring_error(self, index: int) -> str:  # noqa: ARG002
        """Return what the kernel's err eventfd says: no more than that the ring is broken."""
        return BROKEN

    def stop(self) -> None:
        """Do nothing: the rings were stopped, and all else is set anew by `start`."""

    def close(self) -> None:
        """Close the files. Idempotent."""
        self._owned.close()
