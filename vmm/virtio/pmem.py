"""Persistent memory (VIRTIO 1.2, 5.19): a range of guest memory, and a queue of flush requests.

    guest --loads, stores--> memory slot = file (its page cache)
    guest --flush--> queue --> a thread: fdatasync --> used

Reads and writes are the guest's own memory accesses. One fdatasync(2) completes all requests that
had come before it began.
"""

from __future__ import annotations

import os
import struct
from threading import Condition
from typing import TYPE_CHECKING, Final, Protocol

from vmm import thread
from vmm._native import ffi, lib
from vmm.errors import HostError
from vmm.virtio.device import VirtioDevice
from vmm.virtio.queue import Chain, RingError

if TYPE_CHECKING:
    from threading import Thread

    from vmm.events import Events
    from vmm.virtio.queue import MemoryMap, Queue

QUEUE_SIZE: Final = 64

REQUEST: Final = struct.Struct("<I")
"""``struct virtio_pmem_req``: the request's type."""

DONE: Final = struct.pack("<I", 0)
FAILED: Final = struct.pack("<I", 1)
"""``struct virtio_pmem_resp`` (5.19.6): VIRTIO_PMEM_RESP_TYPE_OK and _EIO."""

SEGMENTS: Final = 8
"""Buffers in a request, at most: request and response have four bytes each."""


class Durable(Protocol):
    """Persistent memory as the guest sees it; `PmemFile` is one."""

    base: int
    size: int

    def sync(self) -> None:
        """Make durable what was written before the call. Raises OSError."""


class Pmem(VirtioDevice):
    """The device for *backing*, which is in guest memory already."""

    device_id: int = lib.VIRTIO_ID_PMEM
    unmovable = "the guest writes its file as memory, which is not moved"

    def __init__(self, name: str, memory: MemoryMap, events: Events, backing: Durable) -> None:
        super().__init__(name, memory, events, [QUEUE_SIZE])
        self._backing = backing
        self._waiting: list[Chain] = []
        self._queue: Queue | None = None
        self._work = Condition(self._lock)
        self._thread: Thread | None = None
        self._syncing = False
        self._closing = False
        config = {"start": backing.base, "size": backing.size}
        self._config = bytes(ffi.buffer(ffi.new("struct virtio_pmem_config *", config)))

    def config(self) -> bytes:
        """Return ``struct virtio_pmem_config`` (5.19.4)."""
        return self._config

    def serve(self, index: int, queue: Queue) -> None:  # noqa: ARG002  (there is only one)
        """Pass flush requests to the thread."""
        for _ in range(queue.size):
            chain = queue.pop(Chain(SEGMENTS))
            if chain is None:
                break
            if chain.readable < REQUEST.size or chain.writable < len(DONE):
                raise RingError(lib.PYVMM_RING_REQUEST)
            (kind,) = REQUEST.unpack(chain.read(REQUEST.size))
            if kind == lib.VIRTIO_PMEM_REQ_TYPE_FLUSH:
                self._waiting.append(chain)
            else:
                queue.push(chain.id, chain.write(FAILED))
        if self._waiting:
            self._work.notify_all()

    def queue_started(self, index: int, queue: Queue) -> None:
        """Start the thread, if this is the first start."""
        self._queue = queue
        if self._thread is None:
            try:
                self._thread = thread.start(self.name, self._run)
            except HostError as error:
                self._break(error, index)

    def queue_paused(self, index: int) -> None:  # noqa: ARG002
        """Wait for the flushes that the driver asked for."""
        self._work.wait_for(lambda: not self._waiting and not self._syncing)

    def queue_stopped(self, index: int) -> None:  # noqa: ARG002
        """Drop the requests: nobody waits for them any more."""
        self._queue = None
        self._waiting.clear()

    def _run(self) -> None:
        with self._work:
            while True:
                self._work.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                queue, taken = self._queue, self._waiting[:]
                self._waiting.clear()
                self._syncing = True
                self._lock.release()
                try:
                    reply = self._sync()
                finally:
                    self._lock.acquire()
                if queue is not None and queue is self._queue:
                    self._finish(queue, taken, reply)
                self._syncing = False
                self._work.notify_all()

    def _sync(self) -> bytes:
        try:
            self._backing.sync()
        except OSError as error:
            self._complain("pmem-sync-failed", error=os.strerror(error.errno or 0))
            return FAILED
        return DONE

    def _finish(self, queue: Queue, taken: list[Chain], reply: bytes) -> None:
        for chain in taken:
            queue.push(chain.id, chain.write(reply))
        if queue.should_interrupt() and self.interrupts is not None:
            self.interrupts.used(0)

    def close(self) -> None:
        """Stop, and wait for the thread to finish the flush it is at. Idempotent."""
        super().close()
        with self._work:
            self._closing = True
            self._work.notify()
        if self._thread is not None:
            self._thread.join()
