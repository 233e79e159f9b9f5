"""The base of all virtio devices: features, status, queues, service, reset (VIRTIO 1.2, 2).

    transport (mmio, pci)  --registers-->  VirtioDevice  --serve-->  Rng, ...
                           <-interrupts--       |
                                      queues and their doorbells

A kind of device derives from `VirtioDevice`. A transport knows nothing but that class. The event
loop calls `process` when a queue's doorbell was signalled.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from vmm._native import lib
from vmm.closeable import Closeable
from vmm.errors import HostError
from vmm.events import Bounded
from vmm.fd import EventFd
from vmm.virtio import status
from vmm.virtio.queue import Areas, Format, MemoryMap, Queue, RingError
from vmm.virtio.queue_observer import QueueObserver
from vmm.virtio.state import DeviceState, QueueState

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
"""Words of 32 feature bits that a transport shows; section 2.2 has allotted fewer."""


class TransportInterrupts(Protocol):
    """The device's notifications to the driver, as a transport sends them (2.3). Thread-safe."""

    def of_queue(self, queue: int) -> Interrupt:
        """Return the interrupt that `used` raises with `USED`, for C and other processes."""

    def used(self, queue: int) -> None:
        """Send a used buffer notification for *queue*."""

    def config_changed(self) -> None:
        """Send a configuration change notification; also for DEVICE_NEEDS_RESET (2.1.2)."""

    def clear(self) -> None:
        """Withdraw what was sent and not seen yet: the device was reset."""


class QueueSlot:
    """One of a device's queues as the transport's registers show it; *queue* is set while ready."""

    def __init__(self, size_max: int) -> None:
        self.size_max = size_max
        self.doorbell = EventFd()
        self.observer = QueueObserver()
        self.queue: Queue | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what the driver wrote."""
        self.queue = None
        self.size = self.size_max
        self.areas = Areas(0, 0, 0)


class VirtioDevice(Closeable):
    """A device with queues of at most *queue_sizes* descriptors each, over *memory*.

    name      what events call the device
    features  the feature bits of its kind to offer, besides the ring's
    """

    device_id: int
    """The device's type (section 5)."""

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
        self.slots: list[QueueSlot] = []
        with ExitStack() as undo:
            undo.callback(self._close_doorbells)
            for size in queue_sizes:
                self.slots.append(QueueSlot(size))
            undo.pop_all()
        self.generation = 0
        """Counts changes of the configuration that the driver did not make (2.5)."""
        self._memory = memory
        self._events = events
        self._lock = Lock()
        self._status = 0
        self._accepted = 0
        self._bounded = Bounded(events)
        self._paused = False
        self._restored = False  # since `restore`, until `resume`

    # For kinds of device to override

    def serve(self, index: int, queue: Queue) -> None:
        """Handle what waits in queue *index*; do a bounded amount, as `process` comes again.

        Called with the device's lock, in the loop's thread. May raise `RingError`.
        """
        raise NotImplementedError

    def config(self) -> bytes:
        """Return the device-specific configuration (2.5)."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """Store what the driver wrote to the configuration. Most kinds have nothing to write."""

    def awaits_host(self, index: int) -> bool:  # noqa: ARG002
        """Tell whether more chains in queue *index* are of no use until the host does something.

        Asked after `serve`. Whoever sees the host do it calls `process`.
        """
        return False

    has_threads = False
    """Whether somebody other than the loop serves the queues; `process` is then not for them."""

    unmovable = "pyvmm cannot collect its state"
    """Why a machine with this device cannot be saved; empty if it can."""

    OwnState: ClassVar[type | None] = None
    """What `own_state` returns; None: devices of this kind have nothing besides their queues."""

    def own_state(self) -> Any:
        """Return what the kind has besides queues. Called paused, with the device's lock."""
        return None

    def restore_own(self, own: Any) -> None:
        """Take over what `own_state` returned, before any queue is served. May raise ValueError."""

    def queue_started(self, index: int, queue: Queue) -> None:
        """Start queue *index*: it may be used from now on. Called with the device's lock."""

    def queue_stopped(self, index: int) -> None:
        """Stop everything that touches queue *index*. Called with the device's lock.

        The queue goes once this returns. Harmless if the queue was not started.
        """

    def stopped(self) -> None:
        """Stop what all queues share, after each was stopped. Called with the device's lock.

        Harmless if nothing was started.
        """

    def queue_paused(self, index: int) -> None:
        """Wait until nothing touches queue *index* or its buffers; keep its place in the ring.

        Called with the device's lock, for a live device. A device without threads has nothing to
        wait for: `pause` keeps the loop from the queue.
        """

    def queue_resumed(self, index: int, queue: Queue) -> None:
        """Go on with *queue* where `queue_paused` left it. Called with the device's lock."""

    def readers(self) -> list[tuple[int, Callable[[], object]]]:
        """Return the descriptors that the loop polls, each with its callback; always the same."""
        if self.has_threads:
            return []
        return [
            (slot.doorbell.fileno(), partial(self.process, index))
            for index, slot in enumerate(self.slots)
        ]

    # For transports

    @property
    def accepted(self) -> int:
        """The features that the driver accepted; negotiated once FEATURES_OK is set (2.2)."""
        return self._accepted

    @property
    def status(self) -> int:
        """The device status field (2.1)."""
        return self._status

    @property
    def live(self) -> bool:
        """Whether the queues may be used: DRIVER_OK is set, and nothing is broken."""
        return bool(self._status & status.DRIVER_OK) and not self._status & status.NEEDS_RESET

    def features(self, word: int) -> int:
        """Return the 32 offered feature bits of *word*."""
        return self.offered >> 32 * word & 0xFFFF_FFFF if word < FEATURE_WORDS else 0

    def accept(self, word: int, bits: int) -> None:
        """Store the accepted feature bits of *word*; ignored once FEATURES_OK is set (2.2.1)."""
        with self._lock:
            if word < FEATURE_WORDS and not self._status & status.FEATURES_OK:
                self._accepted &= ~(0xFFFF_FFFF << 32 * word)
                self._accepted |= bits << 32 * word

    def read_config(self, offset: int, size: int) -> int:
        """Return *size* bytes of the configuration; bytes beyond its end are zero."""
        return int.from_bytes(self.config()[offset : offset + size], "little")

    def write_status(self, value: int) -> None:
        """Store to the status: one or several steps (3.1.1), or a reset if *value* is 0."""
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
            slot.doorbell.signal()  # chains may have come before anybody looked

    def _agreed(self) -> bool:
        excess = self._accepted & ~self.offered
        if excess or not self._accepted & F_VERSION_1:
            self._complain("virtio-features-refused", features=hex(self._accepted))
            return False
        return True

    def set_size(self, index: int, size: int) -> None:
        """Store the number of descriptors of queue *index*; ignored once the queue is ready."""
        with self._lock:
            slot = self.slots[index]
            if slot.queue is None:
                slot.size = size

    def set_address(self, index: int, area: str, shift: int, value: int) -> None:
        """Store 32 bits of an area's address, from bit *shift* on; ignored once it is ready."""
        with self._lock:
            slot = self.slots[index]
            if slot.queue is None:
                other = getattr(slot.areas, area) & ~(0xFFFF_FFFF << shift)
                slot.areas = slot.areas._replace(**{area: other | value << shift})

    def enable_queue(self, index: int) -> None:
        """Make queue *index* ready as its slot describes: before DRIVER_OK, or after `reset_queue`.

        Ignored before FEATURES_OK: the features decide the ring's layout.
        """
        with self._lock:
            slot = self.slots[index]
            stage = self._status & (status.FEATURES_OK | status.NEEDS_RESET)
            if slot.queue is not None or stage != status.FEATURES_OK:
                return
            size = slot.size
            if size > slot.size_max:
                self._break(RingError(lib.PYVMM_RING_SIZE), index)
                return
            try:
                slot.queue = Queue(self._memory, size, slot.areas, self._format())
                slot.observer.attach(slot.queue)
            except RingError as error:
                self._break(error, index)
            else:
                if self.live:
                    self._start_queue(index)

    def _format(self) -> Format:
        return Format(
            packed=bool(self._accepted & F_RING_PACKED),
            event_idx=bool(self._accepted & F_EVENT_IDX),
            indirect=bool(self._accepted & F_INDIRECT_DESC),
        )

    def reset_queue(self, index: int) -> None:
        """Stop queue *index* and reset its slot (2.6.1). When this returns, nothing touches it."""
        with self._lock:
            self.queue_stopped(index)
            self.slots[index].reset()

    # Service

    def process(self, index: int) -> None:
        """Serve queue *index*, whose doorbell was signalled. Called in the loop's thread.

        A guest error breaks the device (`RingError` becomes DEVICE_NEEDS_RESET) and raises nothing.
        """
        with self._lock:
            self._process(index)

    def _process(self, index: int) -> None:
        slot = self.slots[index]
        slot.doorbell.drain()
        if (queue := slot.queue) is None or not self.live or self._paused:
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
        """Tell the driver that `config` changed."""
        with self._lock:
            self.generation += 1
            self._tell()

    def _break(self, error: VmmError, index: int) -> None:
        """Stop all queues until the driver resets the device (2.1.2)."""
        self._status |= status.NEEDS_RESET
        for each in range(len(self.slots)):
            self.queue_stopped(each)
        self._complain("virtio-needs-reset", queue=index, error=error.message)
        self._tell()

    def _complain(self, event: str, **fields: object) -> None:
        """Emit an event that the driver can cause without end; a bounded number of each kind."""
        self._bounded.emit(event, device=self.name, **fields)

    def _tell(self) -> None:
        if self._status & status.DRIVER_OK and self.interrupts is not None:
            self.interrupts.config_changed()

    # Pause

    def pause(self) -> None:
        """Serve no queue until `resume`. When this returns, nothing touches guest memory.

        No vCPU may run: the device's registers are not held. Idempotent.
        """
        with self._lock:
            if self._paused:
                return
            self._paused = True
            for index, slot in enumerate(self.slots):
                if slot.queue is not None and self.live:
                    self.queue_paused(index)

    def resume(self) -> None:
        """Serve the queues again. Idempotent. What the host can no longer serve breaks."""
        with self._lock:
            if not self._paused:
                return
            self._paused = False
            for index, slot in enumerate(self.slots):
                if slot.queue is None or not self.live:
                    continue
                if self._restored:
                    self.queue_started(index, slot.queue)
                    if self.interrupts is not None:  # one that was under way is lost
                        self.interrupts.used(index)
                else:
                    self.queue_resumed(index, slot.queue)
                slot.doorbell.signal()  # chains may have come that nobody looked at
            self._restored = False

    # State; see `vmm.virtio.state`

    def state(self) -> DeviceState:
        """Return the state of a paused device. Raises `HostError`: it cannot be collected."""
        with self._lock:
            return DeviceState(
                self.device_id,
                self._status,
                self._accepted,
                self.generation,
                tuple(self._queue_state(index) for index in range(len(self.slots))),
                self.own_state(),
            )

    def _queue_state(self, index: int) -> QueueState:
        slot = self.slots[index]
        # A broken device's rings are of no use: the driver has to reset it.
        sound = slot.queue is not None and not self._status & status.NEEDS_RESET
        try:
            ring = slot.queue.state() if sound and slot.queue is not None else None
        except ValueError as error:
            raise HostError(f"{self.name}: queue {index}: {error}") from error
        return QueueState(slot.size, *slot.areas, ring)

    def restore(self, state: DeviceState) -> None:
        """Take over *state*, before the driver sees the device; `resume` starts the queues.

        Guest memory must be whole. Raises `HostError`, which names what does not fit this device.
        """
        if state.device_id != self.device_id or len(state.queues) != len(self.slots):
            raise HostError(f"{self.name}: the saved device is another, or has other queues")
        if lacking := state.accepted & ~self.offered:
            raise HostError(
                f"{self.name}: its driver uses features {lacking:#x}, which are not offered here"
            )
        with self._lock:
            self._paused = self._restored = True
            self._status, self._accepted = state.status, state.accepted
            self.generation = state.generation
            try:
                for slot, saved in zip(self.slots, state.queues, strict=True):
                    self._restore_queue(slot, saved)
                if self.OwnState is not None:
                    self.restore_own(state.own)
            except (RingError, ValueError) as error:
                raise HostError(f"{self.name}: its state cannot be taken over: {error}") from error

    def _restore_queue(self, slot: QueueSlot, saved: QueueState) -> None:
        slot.size = saved.size
        slot.areas = Areas(saved.descriptors, saved.driver, saved.device)
        if saved.ring is not None:
            slot.queue = Queue(self._memory, slot.size, slot.areas, self._format())
            slot.observer.attach(slot.queue)
            slot.queue.restore(saved.ring)

    # Reset and close

    def cancel_waits(self) -> None:
        """End every wait for another program that holds the device's lock: a vCPU has to stop.

        Thread-safe; does not wait itself.
        """

    def reset(self) -> None:
        """Return to the state after power-on. When this returns, nothing touches guest memory."""
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
        """Reset, and close the doorbells, which no loop and no VM may have. Idempotent."""
        self.reset()
        self._close_doorbells()

    def _close_doorbells(self) -> None:
        for slot in self.slots:
            slot.doorbell.close()
