"""Deliver messages (MSI) into a VM: one routing table for all functions, and their irqfds.

    eventfd --irqfd--> GSI --routing table--> (address, data, requester id) --ITS--> a vCPU

KVM has one table for a VM and replaces it as a whole, so the vectors of all functions are in this
one, and a change of several is one replacement. A masked vector has no irqfd. What is signalled
meanwhile stays in its eventfds: that is the pending bit, and KVM finds it when the irqfd comes
back. The route of a masked vector stays in the table, unused.
"""

from __future__ import annotations

import select
from contextlib import ExitStack
from threading import Lock
from typing import TYPE_CHECKING, Final

from vmm.events import Bounded
from vmm.kvm.vm import MsiRoute, PinRoute

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmm.events import Events
    from vmm.kvm.vm import Vm
    from vmm.pci.msix import Message

GSIS: Final = 4096
"""Routes of a VM (include/linux/kvm_host.h, KVM_MAX_IRQ_ROUTES)."""


class IrqRouting:
    """The routing table of the connected VM. Thread-safe.

    *pins* are the interrupt controller's inputs that other irqfds use: KVM routes all inputs by
    default, but only those in the table once it has one. Messages get interrupt numbers (GSIs) from
    *first* on.
    """

    def __init__(self, pins: Iterable[int], first: int, events: Events) -> None:
        self.lock = Lock()
        self.vm: Vm | None = None
        self.doorbell: int | None = None
        self._pins = [PinRoute(pin, pin) for pin in pins]
        self._free = self._first = first
        self._events = events
        self._routes: dict[int, MsiRoute] = {}
        self._functions: list[FunctionMsis] = []

    def function(self, name: str) -> FunctionMsis:
        """Add a function, which events call *name*, and return what delivers its messages."""
        made = FunctionMsis(name, self, self._events)
        self._functions.append(made)
        return made

    def connect(self, vm: Vm, doorbell: int | None) -> None:
        """Deliver to *vm*, whose ITS takes messages at *doorbell*; None: it has no ITS.

        Call this after the interrupt controller was created. All vectors are masked then.
        """
        with self.lock:
            self.vm, self.doorbell = vm, doorbell

    def disconnect(self) -> None:
        """Forget the VM and its irqfds: it is gone. Idempotent."""
        with self.lock:
            self.vm = self.doorbell = None
            self._routes.clear()
            self._free = self._first
            for function in self._functions:
                function.disconnected()

    # For `FunctionMsis`, which holds the lock

    def new_gsi(self) -> int | None:
        """Return a free interrupt number, or None if all are taken."""
        if self._free == GSIS:
            return None
        self._free += 1
        return self._free - 1

    def set_routes(self, routes: Iterable[MsiRoute]) -> None:
        """Put *routes* into the table, replacing those of the same GSIs. Raises `KvmError`."""
        changed = {each.gsi: each for each in routes if self._routes.get(each.gsi) != each}
        if changed and self.vm is not None:
            self._routes.update(changed)
            self.vm.set_gsi_routing([*self._pins, *self._routes.values()])


class FunctionMsis:
    """The vectors of one function: a `vmm.pci.msix.MsiDelivery`.

    Set `requester` before the guest runs: the requester id (bus, device and function) that the ITS
    knows the function by.
    """

    def __init__(self, name: str, table: IrqRouting, events: Events) -> None:
        self.requester = 0
        self._name = name
        self._table = table
        self._events = Bounded(events)
        self._fds: dict[int, list[int]] = {}
        self._gsis: dict[int, int] = {}
        self._sending: set[int] = set()
        """Unmasked vectors: their eventfds should have irqfds."""
        self._irqfds: dict[int, int] = {}
        """Eventfds that have an irqfd, with its GSI: KVM may refuse one."""

    # What signals what

    def attach(self, vector: int, fd: int) -> None:
        """Let eventfd *fd* send the message of *vector*. Raises `KvmError`."""
        with self._table.lock:
            if vector in self._sending:
                self._assign(fd, self._gsis[vector])
            self._fds.setdefault(vector, []).append(fd)

    def detach(self, fd: int) -> None:
        """Undo `attach` of *fd*, before it is closed. Raises `KvmError`."""
        with self._table.lock:
            for fds in self._fds.values():
                if fd in fds:
                    fds.remove(fd)
                    self._release(fd)

    # What vectors send

    def update(self, messages: Mapping[int, Message | None]) -> None:
        """Set the messages of vectors; None masks a vector. Raises `KvmError`."""
        with self._table.lock:
            if self._table.vm is None:
                return
            routes = {}
            for vector, message in messages.items():
                route = None if message is None else self._route(vector, message)
                if route is None:
                    self._disarm(vector)
                else:
                    routes[vector] = route
            self._table.set_routes(routes.values())
            with ExitStack() as each:  # is tried, even if another fails
                for vector in routes:
                    each.callback(self._arm, vector)

    def pending(self, vector: int) -> bool:
        """Return whether an eventfd of *vector* was signalled and not delivered."""
        with self._table.lock:
            poll = select.poll()
            for fd in self._fds.get(vector, ()):
                poll.register(fd, select.POLLIN)
            return bool(poll.poll(0))

    def disconnected(self) -> None:
        """Forget irqfds and interrupt numbers. The caller holds the table's lock."""
        self._sending.clear()
        self._irqfds.clear()
        self._gsis.clear()

    def _route(self, vector: int, message: Message) -> MsiRoute | None:
        if message.address != self._table.doorbell:
            self._refuse(vector, message, "nothing takes messages at that address")
            return None
        gsi = self._gsis.get(vector)
        if gsi is None:
            gsi = self._table.new_gsi()
            if gsi is None:
                self._refuse(vector, message, f"KVM routes no more than {GSIS} interrupts")
                return None
            self._gsis[vector] = gsi
        return MsiRoute(gsi, message.address, message.data, self.requester)

    def _arm(self, vector: int) -> None:
        self._sending.add(vector)
        for fd in self._fds.get(vector, ()):
            if fd not in self._irqfds:
                self._assign(fd, self._gsis[vector])

    def _disarm(self, vector: int) -> None:
        self._sending.discard(vector)
        for fd in self._fds.get(vector, ()):
            self._release(fd)

    def _assign(self, fd: int, gsi: int) -> None:
        if self._table.vm is not None:
            self._table.vm.irqfd(fd, gsi)
            self._irqfds[fd] = gsi

    def _release(self, fd: int) -> None:
        gsi = self._irqfds.pop(fd, None)
        if gsi is not None and self._table.vm is not None:
            self._table.vm.irqfd(fd, gsi, deassign=True)

    def _refuse(self, vector: int, message: Message, because: str) -> None:
        self._events.emit(
            "msi-refused",
            device=self._name,
            vector=vector,
            address=message.address,
            data=message.data,
            because=because,
        )
