"""The socket device (VIRTIO 1.2, 5.10), served by vhost-vsock: the host has AF_VSOCK.

The kernel serves the receive and the transmit queue. The event queue is kept here and never used:
its only event says that the context ID changed, which does not happen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib
from vmm.virtio.vhost.device import VhostDevice
from vmm.virtio.vhost.kernel import KernelBackend, VhostFile, VhostIoctl

if TYPE_CHECKING:
    from vmm.events import Events
    from vmm.virtio.queue import MemoryMap, Queue
    from vmm.virtio.vhost.backend import Ring

PATH: Final = "/dev/vhost-vsock"
F_SEQPACKET: Final = 1 << lib.VIRTIO_VSOCK_F_SEQPACKET
QUEUE_SIZES: Final = (128, 128, 8)
RINGS: Final = 2


class VsockFile(VhostFile):
    """An instance of vhost-vsock."""

    module = "vhost_vsock"


class VsockBackend(KernelBackend):
    """vhost-vsock, for the guest with context ID *cid*. Raises `HostError`."""

    resets_rings = False  # VHOST_VSOCK_SET_RUNNING starts and stops both

    def __init__(self, cid: int) -> None:
        option = f"--vsock {cid}"
        super().__init__(PATH, VsockFile, 1, option)
        self._set: set[int] = set()
        self._running = False
        try:
            self._file.ioctl_value(
                VhostIoctl.VHOST_VSOCK_SET_GUEST_CID, "uint64_t", cid, guest_cid=cid
            )
        except BaseException:
            self.close()
            raise

    @property
    def _file(self) -> VhostFile:
        return self._files[0]

    def _run(self, *, on: bool) -> None:
        if on != self._running:
            self._file.ioctl_value(
                VhostIoctl.VHOST_VSOCK_SET_RUNNING, "int", int(on), running=int(on)
            )
            self._running = on

    def start_ring(self, index: int, ring: Ring) -> None:
        """Set up a ring; both run once both are set up."""
        self._file.set_ring(index, ring)
        self._set.add(index)
        self._run(on=len(self._set) == RINGS)

    def pause_ring(self, index: int) -> None:  # noqa: ARG002  (both at once)
        """Stop both rings: the kernel keeps their places."""
        self._run(on=False)

    def resume_ring(self, index: int) -> None:  # noqa: ARG002
        """Run both rings again, if both are set up."""
        self._run(on=len(self._set) == RINGS)

    def stop_ring(self, index: int) -> None:
        """Stop both rings."""
        self._set.discard(index)
        self._run(on=False)


class Vsock(VhostDevice):
    """Sockets between the host and the guest with context ID *cid*. Owns *backend*."""

    device_id: int = lib.VIRTIO_ID_VSOCK

    def __init__(
        self, name: str, memory: MemoryMap, events: Events, cid: int, backend: VsockBackend
    ) -> None:
        features = backend.features() & F_SEQPACKET
        super().__init__(name, memory, events, QUEUE_SIZES, features, backend=backend)
        self._config = bytes(ffi.buffer(ffi.new("struct virtio_vsock_config *", [cid])))

    def config(self) -> bytes:
        """Return ``struct virtio_vsock_config`` (5.10.4)."""
        return self._config

    def is_ours(self, index: int) -> bool:
        """Return whether this is the event queue."""
        return index >= RINGS

    def awaits_host(self, index: int) -> bool:  # noqa: ARG002
        """Return True: the driver's buffers wait for an event."""
        return True

    def serve(self, index: int, queue: Queue) -> None:
        """Do nothing: there is no event."""
