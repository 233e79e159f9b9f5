"""What all virtio devices have in common, whatever they do and however they are attached.

    transport (mmio, pci)  --registers-->  VirtioDevice  --serve-->  Rng, ...
                           <-interrupts--       |
                                      queues and their doorbells

A kind of device derives from `VirtioDevice`; a transport knows nothing but that class. Whoever
has the event loop calls `process` when a queue's doorbell has been rung.
"""

from __future__ import annotations

from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Final, Protocol

from vmm._native import lib
from vmm.closeable import Closeable
from vmm.events import Bounded
from vmm.fd import EventFd
from vmm.virtio import status
from vmm.virtio.queue import Areas, Format, MemoryMap, Queue, RingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.errors import VmmError
    from vmm.events import Events
    from vmm.virtio.notify import Interrupt

F_INDIRECT_DESC: Final = 1 << lib.VIRTIO_RING_F_INDIRECT_DESC
F_EVENT_IDX: Final = 1 << lib.VIRTIO_RING_F_EVENT_IDX
F_VERSION_1: Final = 1 << lib.VIRTIO_F_VERSION_1
F_RING_PACKED: Final = 1 << lib.VIRTIO_F_RING_PACKED
F_RING_RESET: Final = 1 << lib.VIRTIO_F_RING_RESET

RING_FEATURES: Final = F_INDIRECT_DESC | F_EVENT_IDX | F_RING_PACKED | F_RING_RESET
FEATURE_WORDS: Final = 4
"""Words of 32 feature bits that a transport shows; 2.2 has allotted fewer."""


class TransportInterrupts(Protocol):
    """How a transport tells the driver something. Thread-safe."""

    def of_queue(self, queue: int) -> Interrupt:
        """Return what `used` raises, with `USED`, for who does that himself, in C."""

    def used(self, queue: int) -> None:
        """Say that chains of *queue* were used."""

    def config_changed(self) -> None:
        """Say that the configuration changed, or that the device needs a reset."""

    def clear(self) -> None:
        """Say nothing of what was said before: the device was reset."""


class QueueSlot:
    """One of a device's queues as the transport's registers show it; *queue* while it is ready."""

    def __init__(self, size_max: int) -> None:
        self.size_max = size_max
        self.doorbell = EventFd()
        self.queue: Queue | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what the driver said."""
        self.queue = None
        self.size = self.size_max
        self.areas = Areas(0, 0, 0)


class VirtioDevice(Closeable):
    """A device of some kind, with queues of at most *queue_sizes* over *memory*.

    name  what events call it
    """

    device_id: int
    """Its type (section 5)."""

    def __init__(
        self,
        name: str,
        memory: MemoryMap,
        events: Events,
        queue_sizes: Sequence[int],
        features: int = 0,
    ) -> None:
        self.name = name
        self.offered = features | RING_FEATURES | F_VERSION_1
        self.interrupts: TransportInterrupts | None = None
        """The transport's; set before the driver sees the device."""
        self.slots = [QueueSlot(size) for size in queue_sizes]
        self.generation = 0
        """Counts changes of the configuration that the driver did not make (2.5)."""
        self._memory = memory
        self._events = events
        self._lock = Lock()
        self._status = 0
        self._accepted = 0
        self._bounded = Bounded(events)

    # What a kind of device provides

    def serve(self, index: int, queue: Queue) -> None:
        """Handle what waits in queue number *index*, but not without end: `process` comes again.

        With the device's lock, in the loop's thread. `RingError` may pass through.
        """
        raise NotImplementedError

    def config(self) -> bytes:
        """Return the device-specific configuration (2.5)."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """Take what the driver wrote to the configuration; most kinds have nothing to write."""

    def awaits_host(self, index: int) -> bool:  # noqa: ARG002
        """Whether more chains in queue *index* are of no use until something happens here.

        Asked after `serve`; whoever sees it happen calls `process`.
        """
        return False

    has_threads = False
    """Whether somebody else than the loop serves its queues: then `process` is not for them."""

    def queue_started(self, index: int, queue: Queue) -> None:
        """Begin with queue *index*: it may be used from now on. With the device's lock."""

    def queue_stopped(self, index: int) -> None:
        """End all that touches queue *index*, for it is about to go. With the device's lock.

        Harmless if it was not started.
        """

    def stopped(self) -> None:
        """End what is common to all queues, which have been stopped. With the device's lock.

        Harmless if nothing was started.
        """

    def readers(self) -> list[tuple[int, Callable[[], object]]]:
        """Return what the loop has to listen to, and what it then calls; always the same."""
        if self.has_threads:
            return []
        return [
            (slot.doorbell.fileno(), partial(self.process, index))
            for index, slot in enumerate(self.slots)
        ]

    # What transports show

    @property
    def accepted(self) -> int:
        """The features that the driver wants; once FEATURES_OK is set, those agreed upon."""
        return self._accepted

    @property
    def status(self) -> int:
        """The device status field (2.1)."""
        return self._status

    @property
    def live(self) -> bool:
        """Whether the queues may be used: DRIVER_OK, and nothing is broken."""
        return bool(self._status & status.DRIVER_OK) and not self._status & status.NEEDS_RESET

    def features(self, word: int) -> int:
        """Return the 32 feature bits of *word* that are offered."""
        return self.offered >> 32 * word & 0xFFFF_FFFF if word < FEATURE_WORDS else 0

    def accept(self, word: int, bits: int) -> None:
        """Take what the driver accepts of *word*; too late once FEATURES_OK is set (2.2.1)."""
        with self._lock:
            if word < FEATURE_WORDS and not self._status & status.FEATURES_OK:
                self._accepted &= ~(0xFFFF_FFFF << 32 * word)
                self._accepted |= bits << 32 * word

    def read_config(self, offset: int, size: int) -> int:
        """Return *size* bytes of the configuration; beyond its end there are zeroes."""
        return int.from_bytes(self.config()[offset : offset + size], "little")

    def write_status(self, value: int) -> None:
        """Do what the driver's store to the status does: a step, some steps, or, by 0, a reset."""
        if value == 0:
            self.reset()
            return
        with self._lock:
            sound = not self._status & status.NEEDS_RESET
            stepped, lawful = status.step(self._status, value, self._enter)
            self._status = now = self._status | stepped
            if sound and now & status.NEEDS_RESET:
                self._tell()  # a queue broke on the way to DRIVER_OK, when nobody could be told
        if not lawful:
            self._complain("virtio-bad-status", status=now, written=value)

    def _enter(self, bit: int) -> bool:
        if bit == status.FEATURES_OK and not self._agreed():
            return False
        if bit == status.DRIVER_OK and not self._status & status.NEEDS_RESET:
            for index in range(len(self.slots)):
                self._start_queue(index)
        return True

    def _start_queue(self, index: int) -> None:
        slot = self.slots[index]
        if slot.queue is not None and not self._status & status.NEEDS_RESET:
            self.queue_started(index, slot.queue)
            slot.doorbell.signal()  # what came before was not looked at

    def _agreed(self) -> bool:
        excess = self._accepted & ~self.offered
        if excess or not self._accepted & F_VERSION_1:
            self._complain("virtio-features-refused", features=hex(self._accepted))
            return False
        return True

    def set_size(self, index: int, size: int) -> None:
        """Take how many descriptors queue *index* shall have; too late once it is ready."""
        with self._lock:
            slot = self.slots[index]
            if slot.queue is None:
                slot.size = size

    def set_address(self, index: int, area: str, shift: int, value: int) -> None:
        """Take 32 bits of an area's address, from bit *shift* on; too late once it is ready."""
        with self._lock:
            slot = self.slots[index]
            if slot.queue is None:
                other = getattr(slot.areas, area) & ~(0xFFFF_FFFF << shift)
                slot.areas = slot.areas._replace(**{area: other | value << shift})

    def enable_queue(self, index: int) -> None:
        """Make queue *index* ready, as its slot says; before DRIVER_OK, or after `reset_queue`.

        Nothing happens before features are agreed upon: they decide what a ring looks like.
        """
        with self._lock:
            slot = self.slots[index]
            stage = self._status & (status.FEATURES_OK | status.NEEDS_RESET)
            if slot.queue is not None or stage != status.FEATURES_OK:
                return
            form = Format(
                packed=bool(self._accepted & F_RING_PACKED),
                event_idx=bool(self._accepted & F_EVENT_IDX),
                indirect=bool(self._accepted & F_INDIRECT_DESC),
            )
            size = slot.size
            if size > slot.size_max:
                self._break(RingError(lib.PYVMM_RING_SIZE), index)
                return
            try:
                slot.queue = Queue(self._memory, size, slot.areas, form)
            except RingError as error:
                self._break(error, index)
            else:
                if self.live:
                    self._start_queue(index)

    def reset_queue(self, index: int) -> None:
        """Stop queue *index* and forget it (2.6.1); when this returns, nothing touches it."""
        with self._lock:
            self.queue_stopped(index)
            self.slots[index].reset()

    # Service

    def process(self, index: int) -> None:
        """Serve queue *index*: its doorbell was rung. In the loop's thread.

        What the guest did wrong breaks the device, not us: nothing is raised for it.
        """
        with self._lock:
            self._process(index)

    def _process(self, index: int) -> None:
        slot = self.slots[index]
        slot.doorbell.drain()
        if (queue := slot.queue) is None or not self.live:
            return
        try:
            self.serve(index, queue)
        except RingError as error:
            self._break(error, index)
            return
        if queue.should_interrupt() and self.interrupts is not None:
            self.interrupts.used(index)
        if not self.awaits_host(index) and queue.enable_notify():
            slot.doorbell.signal()

    def config_changed(self) -> None:
        """Tell the driver that `config` is another now."""
        with self._lock:
            self.generation += 1
            self._tell()

    def _break(self, error: VmmError, index: int) -> None:
        """Stand still until the driver resets the device (2.1.2)."""
        self._status |= status.NEEDS_RESET
        for each in range(len(self.slots)):
            self.queue_stopped(each)
        self._complain("virtio-needs-reset", queue=index, error=error.message)
        self._tell()

    def _complain(self, event: str, **fields: object) -> None:
        """Emit what the driver may cause without end."""
        self._bounded.emit(event, device=self.name, **fields)

    def _tell(self) -> None:
        if self._status & status.DRIVER_OK and self.interrupts is not None:
            self.interrupts.config_changed()

    # Life

    def cancel_waits(self) -> None:
        """Have nobody wait for others' programs who holds the device up: a vCPU has to stop.

        From any thread; never waits.
        """

    def reset(self) -> None:
        """Be as after power-on. When this returns, nothing touches guest memory."""
        with self._lock:
            self._status = self._accepted = 0
            for index, slot in enumerate(self.slots):
                self.queue_stopped(index)
                slot.reset()
                slot.doorbell.drain()
            self.stopped()
            if self.interrupts is not None:
                self.interrupts.clear()

    def close(self) -> None:
        """Reset, and close the doorbells: no loop and no VM may have them. Idempotent."""
        self.reset()
        for slot in self.slots:
            slot.doorbell.close()
