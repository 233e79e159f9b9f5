"""A device's interrupts: from VFIO into KVM by eventfds, without a thread.

    INTx        VFIO masks the interrupt and signals an eventfd. KVM asserts the line until the
                guest's end of interrupt, then signals the other eventfd: VFIO unmasks
    MSI, MSI-X  VFIO signals a vector's eventfd. KVM sends the guest's message; while the guest
                has the vector masked, the eventfd keeps the count

VFIO allows one kind at a time. The device has INTx whenever the guest has messages disabled.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING

from vmm.closeable import Closeable
from vmm.errors import VmmError
from vmm.events import Bounded
from vmm.fd import EventFd
from vmm.vfio.irq import NO_EVENTFD, IrqIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm.events import Events
    from vmm.kvm.vm import Vm
    from vmm.pci.msix import Message, MsiDelivery
    from vmm.vfio.device import VfioDevice
    from vmm.vfio.irq import Irqs


class Vectors:
    """The vectors of MSI or MSI-X, as a `vmm.pci.msix.MsiSink`: sets up VFIO and KVM."""

    def __init__(
        self, interrupts: PassthroughInterrupts, index: IrqIndex, delivery: MsiDelivery
    ) -> None:
        self._interrupts = interrupts
        self._index = index
        self._delivery = delivery
        self._fds: dict[int, EventFd] = {}
        self._signalled: set[int] = set()

    def update(self, messages: Mapping[int, Message | None]) -> None:
        """Set the messages of these vectors; see `MsiSink`. A failure is an event."""
        with self._interrupts.lock:
            new = {vector for vector, message in messages.items() if message is not None}
            new -= self._signalled
            if new and not self._interrupts.closed:
                self._try(partial(self._signal, new))
            # Even if that failed: vectors that are signalled work, masked ones send nothing.
            self._try(partial(self._delivery.update, messages))

    def _try(self, what: Callable[[], object]) -> None:
        try:
            what()
        except (OSError, VmmError) as error:
            self._interrupts.complain(self._index, error)

    def pending(self, vector: int) -> bool:
        """Tell whether VFIO has signalled *vector* while it had no message."""
        return self._delivery.pending(vector)

    def _signal(self, new: set[int]) -> None:
        """Make VFIO signal *new* vectors as well. Raises `VfioError`; OSError: too many files."""
        irqs = self._interrupts.take(self._index)
        if self._interrupts.resizable(self._index):
            for vector in sorted(new):
                self._open(vector)
                irqs.signal(self._index, [self._fds[vector].fileno()], vector)
                self._signalled.add(vector)
            return
        for vector in sorted(new):
            self._open(vector)
        # All of them again: VFIO needs their number at the first call.
        before = set(self._signalled)
        if before:
            self._signalled.clear()
            irqs.disable(self._index)
        try:
            self._signal_all(irqs, before | new)
        except VmmError:
            if before:  # those that worked go on
                self._signal_all(irqs, before)
            raise
        finally:
            for vector in before & self._signalled:
                # What was sent in between is lost. A spurious interrupt does no harm.
                self._fds[vector].signal()

    def _signal_all(self, irqs: Irqs, wanted: set[int]) -> None:
        """Make VFIO, which signals none, signal *wanted*. Raises `VfioError`."""
        count = max(wanted) + 1
        fds = [self._fds[one].fileno() if one in wanted else NO_EVENTFD for one in range(count)]
        irqs.signal(self._index, fds)
        self._signalled = wanted

    def _open(self, vector: int) -> None:
        """Create the eventfd of *vector*, if it has none. Raises OSError or `KvmError`."""
        if vector not in self._fds:
            eventfd = EventFd()
            try:
                self._delivery.attach(vector, eventfd.fileno())
            except BaseException:
                eventfd.close()
                raise
            self._fds[vector] = eventfd

    def forget(self) -> None:
        """Note that VFIO signals nothing any more; drop what was signalled."""
        self._signalled.clear()
        for eventfd in self._fds.values():
            eventfd.drain()

    def close(self) -> None:
        """Close the eventfds. Idempotent."""
        while self._fds:
            self._fds.popitem()[1].close()


class PassthroughInterrupts(Closeable):
    """Own the interrupts of one device. `with` closes the eventfds.

    Thread-safe: writes of the MSI-X table and of configuration space come with different locks.
    """

    def __init__(
        self, device: VfioDevice, events: Events, deliveries: Mapping[IrqIndex, MsiDelivery]
    ) -> None:
        """Create them. *deliveries* send the messages of MSI and MSI-X."""
        self.lock = RLock()
        """Taken after the host bridge's and the MSI-X table's."""
        self._device = device
        self._events = Bounded(events)
        self._used: IrqIndex | None = None
        self._has_pin = bool(device.irq(IrqIndex.INTX).count)
        self._connected = False
        self._vectors = {index: Vectors(self, index, each) for index, each in deliveries.items()}
        self._owned = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            self._trigger = self._owned.enter_context(EventFd())
            self._unmask = self._owned.enter_context(EventFd())
            undo.pop_all()
        for vectors in self._vectors.values():
            self._owned.callback(vectors.close)

    def vectors(self, index: IrqIndex) -> Vectors:
        """Return the sink for the messages of MSI or MSI-X."""
        return self._vectors[index]

    def connect(self, vm: Vm, gsi: int) -> None:
        """Deliver INTx as interrupt *gsi* of *vm*, which is about to run. Raises `KvmError`."""
        if self._has_pin:
            vm.irqfd(self._trigger.fileno(), gsi, resamplefd=self._unmask.fileno())
        self._connected = True
        self.update_intx(messages=False)

    def disconnect(self) -> None:
        """Make VFIO signal nothing: the VM is about to go."""
        self._connected = False
        self.silence()

    def update_intx(self, *, messages: bool) -> None:
        """Use INTx unless the guest has *messages* enabled. A failure is an event."""
        with self.lock:
            if self._device.closed:
                return
            try:
                if messages:
                    if self._used is IrqIndex.INTX:
                        self.silence()
                elif self._used is not IrqIndex.INTX:
                    self._use_pin()
            except VmmError as error:
                self.complain(IrqIndex.INTX, error)

    def _use_pin(self) -> None:
        self.silence()
        if self._has_pin and self._connected:
            self._device.irqs.signal(IrqIndex.INTX, [self._trigger.fileno()])
            self._used = IrqIndex.INTX
            self._device.irqs.unmask_by(IrqIndex.INTX, self._unmask.fileno())

    def take(self, index: IrqIndex) -> Irqs:
        """Stop all kinds but *index*; return the device's interrupts."""
        if self._used is not index:
            self.silence()
            self._used = index
        return self._device.irqs

    @property
    def closed(self) -> bool:
        """Whether the device is closed, and cannot be asked."""
        return self._device.closed

    def resizable(self, index: IrqIndex) -> bool:
        """Tell whether vectors of *index* can be added while others are in use."""
        return self._device.irq(index).resizable

    def silence(self) -> None:
        """Make VFIO signal nothing, and drop what was signalled. A failure is an event."""
        with self.lock:
            used, self._used = self._used, None
            if used is not None and not self._device.closed:
                try:
                    self._device.irqs.disable(used)
                except VmmError as error:
                    self.complain(used, error)
            for vectors in self._vectors.values():
                vectors.forget()
            self._trigger.drain()

    def complain(self, index: IrqIndex, error: Exception) -> None:
        """Emit that interrupts of *index* do not come."""
        self._events.emit(
            "vfio-interrupts-failed",
            device=self._device.bdf,
            kind=index.name,
            error=str(error),
        )

    def close(self) -> None:
        """Close the eventfds. VFIO must signal none of them. Idempotent."""
        self._owned.close()
