"""Move packets with threads of ours, in C (cdefs/net.c), where nobody else serves the rings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from vmm import fd, thread
from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.fd import EventFd
from vmm.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, RING_FEATURES
from vmm.virtio.net import registers
from vmm.virtio.queue import Chain, Format, MemoryMap, Queue, RingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from threading import Thread

    from vmm.memory import GuestMemory
    from vmm.virtio.vhost.backend import Ring

RECEIVE: Final = 2
"""Queues alternate between receive and transmit (5.1.2): the period."""


class RingThread(Closeable):
    """Serve one ring, from `start` to `close`. *file* must be non-blocking."""

    def __init__(self, index: int, ring: Ring, queue: Queue, file: int, frame: Any) -> None:
        self._index = index
        self._stop = EventFd()
        self._err = ring.err
        self._receives = index % RECEIVE == 0
        self.mergeable = False
        self.result = 0
        chains = [Chain() for _ in range(lib.PYVMM_NET_WINDOW if self._receives else 1)]
        array = ffi.new("struct pyvmm_chain[]", [chain.c[0] for chain in chains])
        self._keep = queue, chains, array, frame
        self.c: Any = ffi.new(
            "struct pyvmm_net_ring *",
            {
                "queue": queue.c,
                "chains": array,
                "frame": frame,
                "file": file,
                "call": ring.call,
                "doorbell": ring.kick,
                "stop": self._stop.fileno(),
            },
        )
        self._thread: Thread | None = None

    def start(self, *, mergeable: bool) -> None:
        """Start the thread. Raises `HostError` when threads run out."""
        self.c.mergeable = mergeable
        self._thread = thread.start(f"net-{self._index}", self._run, kind=thread.QUEUE)

    def pause(self) -> None:
        """Stop the thread; `resume` goes on with the same buffers at hand."""
        if self._thread is not None:
            lib.pyvmm_net_stop(self.c)
            self._thread.join()
            self._thread = None

    def resume(self) -> None:
        """Start the thread again after `pause`. Raises `HostError` when threads run out."""
        if self.result == 0:  # the ring was not found broken meanwhile
            self._stop.drain()
            self.c.stopping = 0
            self.start(mergeable=bool(self.c.mergeable))

    def _run(self) -> None:
        serve = lib.pyvmm_net_receive if self._receives else lib.pyvmm_net_transmit
        self.result = serve(self.c)
        if self.result:
            fd.signal(self._err)

    def close(self) -> None:
        """Stop the thread. When this returns, nothing touches the ring. Idempotent."""
        self.pause()
        self._stop.close()


class ThreadBackend(Closeable):
    """A back end whose rings are served by threads; see `vmm.virtio.vhost.backend.VhostBackend`.

    files   for each pair of rings a TAP queue or passt's socket; all non-blocking
    stream  the files are sockets; a frame begins with its length
    offers  packet features of what is behind the files
    """

    resets_rings = True

    def __init__(self, files: Sequence[int], *, offers: int, stream: bool = False) -> None:
        self._files: Sequence[int] = files
        self._offers = offers
        self._stream = stream
        self._forget_frames()
        self._threads: dict[int, RingThread] = {}
        self._features = 0
        self._memory: MemoryMap | None = None

    def _forget_frames(self) -> None:
        """Start with streams in which no frame is incomplete."""
        self._frames = [
            ffi.new("struct pyvmm_net_frame *") if self._stream else ffi.NULL
            for _ in range(2 * len(self._files))
        ]

    def features(self) -> int:
        """Return the features of the C code, and those of what is behind the files."""
        return int(RING_FEATURES | F_VERSION_1 | registers.F_MRG_RXBUF | self._offers)

    def start(self, features: int, memory: GuestMemory) -> None:
        """Start with a driver."""
        self._features = features
        self._memory = MemoryMap(memory)

    def start_ring(self, index: int, ring: Ring) -> None:
        """Start the ring's thread."""
        assert self._memory is not None, "start comes first"
        form = Format(
            packed=ring.packed,
            event_idx=bool(self._features & F_EVENT_IDX),
            indirect=bool(self._features & F_INDIRECT_DESC),
        )
        queue = Queue(self._memory, ring.size, ring.guest, form)
        if ring.observer is not None:
            ring.observer.attach(queue)
        file = self._files[index // 2]
        serving = self._threads[index] = RingThread(index, ring, queue, file, self._frames[index])
        serving.start(mergeable=bool(self._features & registers.F_MRG_RXBUF))

    def stop_ring(self, index: int) -> None:
        """Stop the ring's thread and forget chains that it has not used: the ring restarts at 0."""
        if (serving := self._threads.pop(index, None)) is not None:
            serving.close()

    def pause_ring(self, index: int) -> None:
        """Stop the ring's thread; it keeps the buffers that it has."""
        self._threads[index].pause()

    def resume_ring(self, index: int) -> None:
        """Start the ring's thread again."""
        self._threads[index].resume()

    def ring_error(self, index: int) -> str:
        """Return why the ring's thread has ended."""
        serving = self._threads.get(index)
        result = serving.result if serving is not None else 0
        if result < 0:
            return RingError(result).message
        return f"the other end of the network is gone: {os.strerror(result)}"

    def stop(self) -> None:
        """Forget the driver."""
        self._memory = None

    def close(self) -> None:
        """Stop all threads. Idempotent."""
        for index in list(self._threads):
            self.stop_ring(index)
