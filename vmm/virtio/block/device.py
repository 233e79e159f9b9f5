"""The block device (VIRTIO 1.2, 5.2) over a raw image: requests are done in C, a thread a queue.

    guest --doorbell--> cdefs/blk_queue.c: pop a batch, io_uring, stage, publish, interrupt

Python starts the threads. They end at a reset, or when they find a bad ring.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm import thread
from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.errors import HostError, host_errors
from vmm.fd import EventFd
from vmm.virtio.block import registers
from vmm.virtio.block.image_format import MAGIC
from vmm.virtio.device import VirtioDevice
from vmm.virtio.notify import USED
from vmm.virtio.queue import RingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.events import Events
    from vmm.virtio.block.raw_image import RawDisk
    from vmm.virtio.queue import MemoryMap, Queue

QUEUE_SIZE: Final = 256
SEGMENTS: Final = QUEUE_SIZE - 2
"""Buffers of data in a request; header and status take two more."""
CHAIN_SEGMENTS: Final = QUEUE_SIZE + 16
"""Buffers in a request in all: a driver may split header and status over more than two."""

STOP_CHECK: Final = 0.05
"""Seconds that a failed worker waits for the device's lock before it looks whether it is being
stopped: whoever stops it holds the lock."""


_untouched = ffi.new_allocator(should_clear_after_alloc=False)


class _Slots:
    """Room for a queue's requests in flight. Not cleared, so only what is used takes memory."""

    def __init__(self) -> None:
        count, size = lib.PYVMM_BLK_DEPTH, CHAIN_SEGMENTS
        self._segments = _untouched("struct iovec[]", count * size)
        self._addresses = _untouched("uint64_t[]", count * size)
        self.c: Any = ffi.new("struct pyvmm_blk_request[]", count)
        for index in range(count):
            chain = self.c[index].chain
            chain.capacity = size
            chain.segments = self._segments + index * size
            chain.addresses = self._addresses + index * size


class Uring(Closeable):
    """An io_uring for the threads of one queue, one after the other; a sealed process opens none.

    `c` is NULL where the host has none or does not allow it.
    """

    def __init__(self) -> None:
        opened = ffi.new("struct pyvmm_uring *")
        self.c: Any = ffi.NULL if lib.pyvmm_blk_open_uring(opened) else opened

    def close(self) -> None:
        """Close it, once no thread uses it. Idempotent."""
        opened, self.c = self.c, ffi.NULL
        if opened:
            lib.pyvmm_uring_close(opened)


class DiskFacts(NamedTuple):
    """An image: bytes, and when it was changed, in nanoseconds since 1970."""

    size: int
    modified: int


class Failure(NamedTuple):
    """A request that failed on the host.

    kind     VIRTIO_BLK_T_*
    error    an errno
    offset   in the image, in bytes
    refused  by pyvmm: it would have made the disk look like another format
    """

    kind: int
    error: int
    offset: int
    refused: bool


class Worker(Closeable):
    """The thread that serves one queue, from its start to its stop.

    Raises `HostError` and OSError when threads or descriptors run out.
    """

    def __init__(self, device: Blk, index: int, queue: Queue) -> None:
        interrupts = device.interrupts
        assert interrupts is not None, "a transport comes first"
        self._device = device
        self._index = index
        self._stop = EventFd()
        self._keep = queue, _Slots(), interrupts.of_queue(index)
        self.c: Any = ffi.new(
            "struct pyvmm_blk_queue *",
            {
                "disk": device.disk,
                "uring": device.urings[index].c,
                "queue": queue.c,
                "slots": self._keep[1].c,
                "interrupt": self._keep[2].c,
                "bits": USED,
                "doorbell": device.slots[index].doorbell.fileno(),
                "stop": self._stop.fileno(),
                "trouble": device.trouble.fileno(),
            },
        )
        self.stopping = False
        try:
            self._thread = thread.start(f"{device.name}-{index}", self._run, kind=thread.QUEUE)
        except BaseException:
            self.close()
            raise

    def _run(self) -> None:
        if wrong := lib.pyvmm_blk_run(self.c):
            self._device.worker_failed(self, self._index, wrong)

    def failure(self) -> Failure | None:
        """Return what is known of a request that failed; None: none did."""
        failure = ffi.new("struct pyvmm_blk_failure *")
        if not lib.pyvmm_blk_take_failure(self.c, failure):
            return None
        return Failure(
            int(failure.type), int(failure.error), int(failure.offset), bool(failure.refused)
        )

    def stop(self, how: int = lib.PYVMM_BLK_STOP) -> None:
        """Stop the thread. When this returns, no request is in flight.

        With PYVMM_BLK_PAUSE the requests are done to their ends; otherwise zeroes that take long
        are cut short, as nobody waits for them.
        """
        self.stopping = True
        lib.pyvmm_blk_stop(self.c, how)
        self._thread.join()
        self.close()

    def close(self) -> None:
        """Close the eventfd that `stop` signals, once the thread has ended."""
        self._stop.close()


class Blk(VirtioDevice):
    """A disk with *queues* queues, each with a thread of its own. Owns *backing*.

    guessed  raw is what the image looked like, and not what the user said: a write that would make
             it look like another format is an I/O error, and a ``disk-format-refused`` event
    """

    device_id: int = lib.VIRTIO_ID_BLOCK
    has_threads = True
    unmovable = ""

    def __init__(  # noqa: PLR0913  (all independent)
        self,
        name: str,
        memory: MemoryMap,
        events: Events,
        backing: RawDisk,
        *,
        queues: int = 1,
        serial: str = "",
        guessed: bool = False,
    ) -> None:
        features = registers.features(
            queues=queues, read_only=backing.read_only, flush=not backing.cache.write_through
        )
        super().__init__(name, memory, events, [QUEUE_SIZE] * queues, features)
        self._backing = backing
        self._workers: dict[int, Worker] = {}
        try:
            self.trouble = EventFd()
        except OSError:
            self._close_doorbells()
            raise
        """Signalled when a request failed on the host."""
        self.urings = [Uring() for _ in range(queues)]
        self._magics: Any = ffi.new(
            "struct pyvmm_blk_magic[]",
            [{"length": len(magic), "bytes": magic} for magic in MAGIC] if guessed else [],
        )
        self.disk: Any = ffi.new(
            "struct pyvmm_disk *",
            {
                "fd": backing.fileno(),
                "direct_fd": backing.direct_fileno(),
                "direct_memory": backing.alignment.memory,
                "direct_offset": backing.alignment.offset,
                "no_flush": backing.cache.unsafe,
                "read_only": backing.read_only,
                "sectors": backing.sectors,
                "serial": serial.encode()[: lib.PYVMM_BLK_SERIAL_BYTES],
                "magics": self._magics,
                "magic_count": len(self._magics),
            },
        )
        self._config = registers.config(sectors=backing.sectors, segments=SEGMENTS, queues=queues)

    def config(self) -> bytes:
        """Return ``struct virtio_blk_config`` (5.2.4)."""
        return self._config

    def queue_started(self, index: int, queue: Queue) -> None:
        """Start the queue's thread."""
        # Without FLUSH a driver cannot ask for durability: each write must be durable (5.2.6.2).
        unsafe = self._backing.cache.unsafe
        self.disk.write_through = not unsafe and not self.accepted & registers.F_FLUSH
        try:
            with host_errors(self.name):  # no descriptors left
                self._workers[index] = Worker(self, index, queue)
        except HostError as error:
            self._break(error, index)

    def queue_paused(self, index: int) -> None:
        """Stop the queue's thread, after the requests in flight, which are done to their ends."""
        self._stop_worker(index, lib.PYVMM_BLK_PAUSE)

    def queue_resumed(self, index: int, queue: Queue) -> None:
        """Start another thread, which goes on where the last one stopped."""
        self.queue_started(index, queue)

    def queue_stopped(self, index: int) -> None:
        """Stop the queue's thread, after the requests in flight."""
        self._stop_worker(index, lib.PYVMM_BLK_STOP)

    def _stop_worker(self, index: int, how: int) -> None:
        if worker := self._workers.get(index):
            worker.stop(how)
            self._tell_failure(index, worker)
            del self._workers[index]

    def settle(self) -> os.stat_result:
        """Make all that was written durable; return what the image is then. Raises OSError."""
        os.fdatasync(self._backing.fileno())
        return os.fstat(self._backing.fileno())

    def check(self, facts: DiskFacts) -> None:
        """Lock the image, which another host had. Raises `HostError` if it is not as *facts* say.

        What this host's page cache has of it is older than what the other host wrote.
        """
        self._backing.lock()
        fd = self._backing.fileno()
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        now = os.fstat(fd)
        if (now.st_size, now.st_mtime_ns) != facts:
            raise HostError(
                f"{self._backing.option}: it is not the disk that the guest had: {now.st_size} "
                f"bytes, changed at {now.st_mtime_ns} ns; there {facts.size}, {facts.modified}",
                "let both hosts have the same file",
            )

    def lend(self) -> None:
        """Let another host have the image: the device is paused."""
        self._backing.unlock()

    def take_back(self) -> None:
        """Undo `lend`. Raises `UserError` if another machine has the image."""
        self._backing.lock()

    def readers(self) -> list[tuple[int, Callable[[], object]]]:
        """Return the eventfd of failed requests, and what to do when it is readable."""
        return [(self.trouble.fileno(), self.tell_failures)]

    def tell_failures(self) -> None:
        """Emit a ``disk-error`` for what failed on the host; the guest has seen an I/O error.

        In the loop's thread, which does not wait for the device's lock: a reset holds it until the
        requests under way are done.
        """
        self.trouble.drain()
        for index, worker in self._workers.copy().items():
            self._tell_failure(index, worker)

    def _tell_failure(self, index: int, worker: Worker) -> None:
        found = worker.failure()
        if found is None:
            return
        if found.refused:
            remedy = f"{self._backing.option},format=raw"
            self._complain("disk-format-refused", queue=index, remedy=remedy)
            return
        self._complain(
            "disk-error",
            queue=index,
            operation=registers.OPERATIONS.get(found.kind, str(found.kind)),
            offset=found.offset,
            error=os.strerror(found.error),
        )

    def worker_failed(self, worker: Worker, index: int, wrong: int) -> None:
        """Break the device: *worker* has found a bad ring. In the worker's thread."""
        while not worker.stopping:
            # Whoever stops the worker holds the lock and waits for this thread.
            if self._lock.acquire(timeout=STOP_CHECK):
                try:
                    if self._workers.get(index) is worker:
                        self._tell_failure(index, worker)
                        del self._workers[index]  # it ends by itself
                        worker.close()
                        self._break(RingError(wrong), index)
                finally:
                    self._lock.release()
                return

    def close(self) -> None:
        """Stop the threads and close the image. Idempotent."""
        super().close()
        for uring in self.urings:
            uring.close()
        self.trouble.close()
        self._backing.close()
