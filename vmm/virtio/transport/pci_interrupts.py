"""Interrupts of a virtio-pci device: MSI-X vectors, or INTx with ISR status.

Each queue has an eventfd, and so have configuration changes. Whoever used buffers writes it.

    MSI-X on   MsiDelivery.attach(vector, eventfd): KVM sends the vector's message
    MSI-X off  the loop reads the eventfds, sets ISR status (VIRTIO 1.2, 4.1.4.5), drives INTx

KVM could drive INTx as well, but not ISR status, which the driver reads to learn the reason.
"""

from __future__ import annotations

import select
from threading import Lock
from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.closeable import Closeable
from vmm.virtio.notify import CONFIG, USED, Interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.pci.msix import MsiDelivery

NO_VECTOR: Final[int] = lib.VIRTIO_MSI_NO_VECTOR


class PciInterrupts(Closeable):
    """The interrupts of *queues* queues and of the configuration; a `TransportInterrupts`.

    The driver assigns *count* vectors, numbered from 0, whose messages *delivery* sends. *intx*
    drives INTx.
    """

    def __init__(
        self, queues: int, count: int, delivery: MsiDelivery, intx: Callable[[bool], None]
    ) -> None:
        self.count = count
        self.sources = [Interrupt() for _ in range(queues + 1)]
        """One for each queue, and the last one for the configuration."""
        self.assigned = [NO_VECTOR] * (queues + 1)
        """The vector of each source."""
        self._delivery = delivery
        self._intx = intx
        self._lock = Lock()
        self._isr = 0
        self._listening = select.epoll()
        """Polls the sources that the loop turns into INTx: all of them, or none."""
        self._has_intx = False
        self.use_intx(use=True)

    # The driver's side

    def assign(self, source: int, vector: int) -> None:
        """Assign *vector* to *source*; `NO_VECTOR` if there is no such vector (4.1.5.1.2)."""
        if vector >= self.count:
            vector = NO_VECTOR
        with self._lock:
            if vector != self.assigned[source]:
                fd = self.sources[source].fileno()
                self.assigned[source] = NO_VECTOR
                self._delivery.detach(fd)
                if vector != NO_VECTOR:
                    self._delivery.attach(vector, fd)
                self.assigned[source] = vector

    def forget(self) -> None:
        """Assign `NO_VECTOR` to all sources."""
        for source in range(len(self.sources)):
            self.assign(source, NO_VECTOR)

    def take_isr(self) -> int:
        """Return ISR status; clear it and deassert INTx (4.1.4.5)."""
        with self._lock:
            isr, self._isr = self._isr, 0
            self._intx(bool(self._isr))
            return isr

    def isr(self) -> int:
        """Return ISR status, with no effect, and with what the loop has not turned into it yet."""
        self.turn_into_intx()
        return self._isr

    def restore(self, vectors: Sequence[int], isr: int) -> None:
        """Take over the vectors of all sources and ISR status. Raises ValueError."""
        if len(vectors) != len(self.sources):
            raise ValueError(f"{len(self.sources)} interrupts have no {len(vectors)} vectors")
        for source, vector in enumerate(vectors):
            self.assign(source, vector)
        with self._lock:
            self._isr = isr & (USED | CONFIG)
            self._intx(bool(self._isr))

    # INTx

    def use_intx(self, *, use: bool) -> None:
        """Turn interrupts into INTx from now on (True), or leave them to vectors (False)."""
        with self._lock:
            if use is not self._has_intx:
                self._has_intx = use
                for source in self.sources:
                    if use:
                        self._listening.register(source.fileno(), select.EPOLLIN)
                    else:
                        self._listening.unregister(source.fileno())

    def fileno(self) -> int:
        """Return a descriptor that is readable while a source waits to be turned into INTx."""
        return self._listening.fileno()

    def turn_into_intx(self) -> None:
        """Turn what was signalled into ISR status and INTx. Called in the loop's thread."""
        with self._lock:
            signalled = {fd for fd, _ in self._listening.poll(0)}
            for source in self.sources:
                if source.fileno() in signalled:
                    source.drain()
                    self._isr |= CONFIG if source is self.sources[-1] else USED
            self._intx(bool(self._isr))

    # The device's side

    def of_queue(self, queue: int) -> Interrupt:
        """Return *queue*'s own interrupt; its vector may change at any time."""
        return self.sources[queue]

    def used(self, queue: int) -> None:
        """Interrupt: buffers of *queue* were used."""
        self.sources[queue].raise_(USED)

    def config_changed(self) -> None:
        """Interrupt: the configuration changed."""
        self.sources[-1].raise_(CONFIG)

    def clear(self) -> None:
        """Clear all sources and ISR status."""
        for source in self.sources:
            source.clear()
        self.take_isr()

    def close(self) -> None:
        """Close the eventfds, which no VM and no loop may have. Idempotent."""
        self._listening.close()
        for source in self.sources:
            source.close()
