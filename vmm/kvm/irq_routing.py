"""Messages (MSI) into a VM: one routing table for all functions, and who signals what.

    eventfd --irqfd--> GSI --routing table--> (address, data, requester id) --ITS--> a vCPU

KVM has one table a VM, and replaces it as a whole; so all functions' vectors are in this one, and
a change of several is one replacement. A masked vector has no irqfd: what its eventfds are
signalled meanwhile stays in them, which is the pending bit, and KVM finds it when the vector gets
its irqfd back. Its route stays in the table, where nothing takes it.
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
"""How many routes KVM has (include/linux/kvm_host.h, KVM_MAX_IRQ_ROUTES)."""


class IrqRouting:
    """The routing table of the VM that is connected. Thread-safe.

    *pins* are the interrupt controller's inputs that other irqfds use: KVM has routes for all of
    them until it is given a table. Messages get interrupt numbers from *first* on.
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
        """Return what delivers the messages of a function called *name*."""
        made = FunctionMsis(name, self, self._events)
        self._functions.append(made)
        return made

    def connect(self, vm: Vm, doorbell: int | None) -> None:
        """Deliver to *vm*, whose ITS takes messages at *doorbell*; None: it has no ITS.

        All vectors are masked then. Once the interrupt controller is there.
        """
        with self.lock:
            self.vm, self.doorbell = vm, doorbell

    def disconnect(self) -> None:
        """Forget the VM, which is gone, and with it its irqfds. Harmless if there was none."""
        with self.lock:
            self.vm = self.doorbell = None
            self._routes.clear()
            self._free = self._first
            for function in self._functions:
                function.disconnected()

    # With the lock, for `FunctionMsis`

    def new_gsi(self) -> int | None:
        """Return an interrupt number that nobody has; None if there is none left."""
        if self._free == GSIS:
            return None
        self._free += 1
        return self._free - 1

    def set_routes(self, routes: Iterable[MsiRoute]) -> None:
        """Have *routes* in the table, in place of what their numbers meant. Raises `KvmError`."""
        changed = {each.gsi: each for each in routes if self._routes.get(each.gsi) != each}
        if changed and self.vm is not None:
            self._routes.update(changed)
            self.vm.set_gsi_routing([*self._pins, *self._routes.values()])


class FunctionMsis:
    """The vectors of one function: a `vmm.pci.msix.MsiDelivery`.

    `requester` is to be set before the guest runs: bus, device and function number, which the ITS
    knows it by.
    """

    def __init__(self, name: str, table: IrqRouting, events: Events) -> None:
        self.requester = 0
        self._name = name
        self._table = table
        self._events = Bounded(events)
        self._fds: dict[int, list[int]] = {}
        self._gsis: dict[int, int] = {}
        self._sending: set[int] = set()
        """Vectors whose eventfds are to have irqfds,"""
        self._irqfds: dict[int, int] = {}
        """and those that have one, with their interrupt numbers: KVM may have refused."""

    # What signals what

    def attach(self, vector: int, fd: int) -> None:
        """Have *vector* send its message whenever eventfd *fd* is signalled. Raises `KvmError`."""
        with self._table.lock:
            if vector in self._sending:
                self._assign(fd, self._gsis[vector])
            self._fds.setdefault(vector, []).append(fd)

    def detach(self, fd: int) -> None:
        """Have *fd* mean nothing any more, if it did: before it is closed. Raises `KvmError`."""
        with self._table.lock:
            for fds in self._fds.values():
                if fd in fds:
                    fds.remove(fd)
                    self._release(fd)

    # What vectors send

    def update(self, messages: Mapping[int, Message | None]) -> None:
        """Have these vectors send these messages; None: keep them pending. Raises `KvmError`."""
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
            with ExitStack() as each:  # is done whatever becomes of another
                for vector in routes:
                    each.callback(self._arm, vector)

    def pending(self, vector: int) -> bool:
        """Tell whether an eventfd of *vector* has been signalled and nobody took it."""
        with self._table.lock:
            poll = select.poll()
            for fd in self._fds.get(vector, ()):
                poll.register(fd, select.POLLIN)
            return bool(poll.poll(0))

    def disconnected(self) -> None:
        """Forget irqfds and interrupt numbers. With the table's lock."""
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
