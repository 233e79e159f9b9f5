"""The console device (VIRTIO 1.2, 5.3), with any number of ports.

    port 0: queues 0 and 1     control: queues 2 and 3     port n: queues 2n + 2 and 2n + 3

    driver                                 device
      DEVICE_READY ---------------------->
                   <---------------------- PORT_ADD        for each port
      PORT_READY ------------------------>
                   <---------------------- CONSOLE_PORT, or PORT_NAME; RESIZE; PORT_OPEN
      PORT_OPEN ------------------------->                 from now on it gets input

Ports without a name are consoles (hvc0, hvc1...) and come first; the others are serial ports,
which Linux has in /dev/virtio-ports. Port 0 is a console or does not exist, because a driver
without MULTIPORT takes it for one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib
from vmm.virtio.console.chardev.pipes import PipeChardev
from vmm.virtio.console.port import Port, Waits
from vmm.virtio.device import VirtioDevice
from vmm.virtio.queue import RingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.events import Events
    from vmm.virtio.console.chardev.chardev import Chardev
    from vmm.virtio.queue import MemoryMap, Queue

QUEUE_SIZE: Final = 128

F_SIZE: Final = 1 << lib.VIRTIO_CONSOLE_F_SIZE
F_MULTIPORT: Final = 1 << lib.VIRTIO_CONSOLE_F_MULTIPORT
F_EMERG_WRITE: Final = 1 << lib.VIRTIO_CONSOLE_F_EMERG_WRITE

RECEIVE_CONTROL: Final = 2
TRANSMIT_CONTROL: Final = 3

EMERGENCY_WRITE: Final = ffi.offsetof("struct virtio_console_config", "emerg_wr")

CONTROL: Final = struct.Struct("<IHH")
"""``struct virtio_console_control``: port, event, value."""


@dataclass(frozen=True)
class PortState:
    """A port: whether the guest has it open, and how much of its next chain was sent already."""

    number: int
    name: str
    guest_open: bool
    skip: int


@dataclass(frozen=True)
class MessageState:
    """A control message that waits for a buffer of the driver (5.3.6.2)."""

    port: int
    event: int
    value: int
    data: bytes


@dataclass(frozen=True)
class ConsoleState:
    """What a console device has besides its queues."""

    ports: tuple[PortState, ...]
    outbox: tuple[MessageState, ...]


def queue_of(port: int) -> int:
    """Return the number of *port*'s receiveq; its transmitq is the next."""
    return 2 * port + 2 if port else 0


class Console(VirtioDevice):
    """A console device with a port for each of *ends*: a chardev, and a name or, for a console, "".

    Owns the chardevs.
    """

    device_id: int = lib.VIRTIO_ID_CONSOLE
    unmovable = ""
    OwnState = ConsoleState

    def __init__(
        self,
        name: str,
        memory: MemoryMap,
        events: Events,
        ends: Sequence[tuple[Chardev, str]],
    ) -> None:
        consoles = [end for end in ends if not end[1]]
        named = [end for end in ends if end[1]]
        numbered = [*enumerate(consoles), *enumerate(named, max(len(consoles), 1))]
        self.ports = {number: Port(number, chardev, name) for number, (chardev, name) in numbered}
        queues = queue_of(max(self.ports)) + 2
        features = F_MULTIPORT | F_EMERG_WRITE
        features |= F_SIZE if any(chardev.size for chardev, _ in ends) else 0
        super().__init__(name, memory, events, [QUEUE_SIZE] * max(queues, 4), features)
        self._by_queue = {queue_of(number): port for number, port in self.ports.items()}
        self._outbox: dict[tuple[int, int, int], bytes] = {}
        """Control messages that wait for buffers of the driver: port, event and value, then data.
        Of equal ones only the last is kept."""
        self._awaits_host: set[int] = set()
        for number, port in self.ports.items():
            self._listen(port, queue_of(number))

    def _listen(self, port: Port, receive: int) -> None:
        chardev = port.chardev
        chardev.on_input = partial(self.process, receive)
        chardev.on_room = partial(self.process, receive + 1)
        chardev.on_change = partial(self._host_changed, port)
        chardev.on_resize = partial(self._host_resized, port)
        chardev.start()

    @property
    def stdio(self) -> PipeChardev | None:
        """The chardev of the port for standard input and output; None: there is none."""
        for port in self.ports.values():
            if isinstance(port.chardev, PipeChardev):
                return port.chardev
        return None

    def pipe(self, name: str) -> tuple[PipeChardev, int]:
        """Return the chardev of the port called *name*, which is one, and its transmitq."""
        for number, port in self.ports.items():
            if port.name == name and isinstance(port.chardev, PipeChardev):
                return port.chardev, queue_of(number) + 1
        raise KeyError(name)

    @property
    def _multiport(self) -> bool:
        return bool(self.accepted & F_MULTIPORT)

    # Queues

    def serve(self, index: int, queue: Queue) -> None:
        """Move control messages or bytes."""
        lib.pyvmm_queue_disable_notify(queue.c)
        if index == RECEIVE_CONTROL:
            waits = self._deliver(queue)
        elif index == TRANSMIT_CONTROL:
            waits = self._hear(queue)
        elif (port := self._by_queue.get(index & ~1)) is None:
            waits = _drop(queue) if index & 1 else Waits.FOR_HOST
        elif index & 1:
            waits = port.send(queue)
        else:
            if not self._multiport:
                port.guest_open = True
            waits = port.receive(queue)
        self._awaits_host.discard(index)
        if waits is Waits.FOR_HOST:
            self._awaits_host.add(index)
        elif waits is Waits.FOR_ITS_TURN:
            self.slots[index].doorbell.signal()

    def awaits_host(self, index: int) -> bool:
        """Whether more chains in queue *index* would have to wait for the host."""
        return index in self._awaits_host

    def _deliver(self, queue: Queue) -> Waits:
        while self._outbox:
            if (chain := queue.pop()) is None:
                return Waits.FOR_DRIVER
            if chain.writable < CONTROL.size:
                raise RingError(lib.PYVMM_RING_REQUEST)
            key = next(iter(self._outbox))
            queue.push(chain.id, chain.write(CONTROL.pack(*key) + self._outbox.pop(key)))
        return Waits.FOR_HOST

    def _hear(self, queue: Queue) -> Waits:
        for chain in queue.batch(queue.size):
            message = chain.read(CONTROL.size)
            queue.push(chain.id, 0)
            if len(message) < CONTROL.size:
                raise RingError(lib.PYVMM_RING_REQUEST)
            self._obey(*CONTROL.unpack(message))
        return Waits.FOR_DRIVER

    def queue_stopped(self, index: int) -> None:
        """Forget the chain of the queue that the port keeps, if any."""
        self._awaits_host.discard(index)
        if (port := self._by_queue.get(index & ~1)) is not None:
            if index & 1:
                port.forget_sending()
            else:
                port.forget_receiving()

    def queue_paused(self, index: int) -> None:
        """Put the chain that the port keeps, if any, back."""
        self._awaits_host.discard(index)
        if (port := self._by_queue.get(index & ~1)) is not None:
            queue = self.slots[index].queue
            assert queue is not None, "it is live"
            port.put_back(queue, sending=bool(index & 1))

    def own_state(self) -> ConsoleState:
        """Return ports and control messages."""
        return ConsoleState(
            ports=tuple(
                PortState(number, port.name, port.guest_open, port.skip)
                for number, port in self.ports.items()
            ),
            outbox=tuple(MessageState(*key, data) for key, data in self._outbox.items()),
        )

    def restore_own(self, own: ConsoleState) -> None:
        """Take over ports and control messages. Raises ValueError if it has other ports."""
        if [(each.number, each.name) for each in own.ports] != [
            (number, port.name) for number, port in self.ports.items()
        ]:
            raise ValueError("the ports are others")
        for each in own.ports:
            port = self.ports[each.number]
            port.guest_open, port.skip = each.guest_open, each.skip
            if self.accepted & F_MULTIPORT:  # whoever was connected there need not be here
                self._outbox[
                    each.number, lib.VIRTIO_CONSOLE_PORT_OPEN, int(port.chardev.connected)
                ] = b""
        for message in own.outbox:
            self._outbox[message.port, message.event, message.value] = message.data

    def stopped(self) -> None:
        """Forget control messages and which ports the driver has open."""
        self._outbox.clear()
        for port in self.ports.values():
            port.guest_open = False

    # Control (5.3.6.2)

    def _obey(self, number: int, event: int, value: int) -> None:
        port = self.ports.get(number)
        if event == lib.VIRTIO_CONSOLE_DEVICE_READY and value:
            for each in self.ports:
                self._post(each, lib.VIRTIO_CONSOLE_PORT_ADD, 1)
        elif event == lib.VIRTIO_CONSOLE_PORT_READY and value and port is not None:
            self._introduce(port)
        elif event == lib.VIRTIO_CONSOLE_PORT_OPEN and port is not None:
            port.guest_open = bool(value)
            self.slots[queue_of(number)].doorbell.signal()
        else:  # the driver could not set a port up, or the message is invalid
            self._complain("virtio-console-control", port=number, message=event, value=value)

    def _introduce(self, port: Port) -> None:
        if port.is_console:
            self._post(port.number, lib.VIRTIO_CONSOLE_CONSOLE_PORT, 1)
            self._post_size(port)
        else:
            self._post(port.number, lib.VIRTIO_CONSOLE_PORT_NAME, 1, port.name.encode())
        if port.chardev.connected:
            self._post(port.number, lib.VIRTIO_CONSOLE_PORT_OPEN, 1)

    def _post(self, port: int, event: int, value: int, data: bytes = b"") -> None:
        self._outbox.pop((port, event, value), None)
        self._outbox[port, event, value] = data
        self.slots[RECEIVE_CONTROL].doorbell.signal()

    def _post_size(self, port: Port) -> None:
        if port.chardev.size is not None and self.accepted & F_SIZE:
            size = struct.pack("<HH", *port.chardev.size)  # columns first, as the standard says
            self._post(port.number, lib.VIRTIO_CONSOLE_RESIZE, 0, size)

    # The host's side, in the loop's thread

    def _host_changed(self, port: Port, error: OSError | None) -> None:
        connected = port.chardev.connected
        self._events.emit(
            "console-connected" if connected else "console-disconnected",
            device=self.name,
            port=port.number,
            **({} if error is None else {"error": error.strerror}),
        )
        with self._lock:
            if self.live and self._multiport:
                self._post(port.number, lib.VIRTIO_CONSOLE_PORT_OPEN, int(connected))
        for index in (queue_of(port.number), queue_of(port.number) + 1):
            self.process(index)

    def _host_resized(self, port: Port) -> None:
        with self._lock:
            if self.live and self._multiport and port.is_console:
                self._post_size(port)
        if port.number == 0 and not self._multiport:
            self.config_changed()

    # Configuration (5.3.4)

    def config(self) -> bytes:
        """Return ``struct virtio_console_config``."""
        port = self.ports.get(0)
        columns, rows = (port.chardev.size if port else None) or (0, 0)
        values = {"cols": columns, "rows": rows, "max_nr_ports": max(self.ports) + 1}
        config = ffi.new("struct virtio_console_config *", values)
        return bytes(ffi.buffer(config))

    def write_config(self, offset: int, data: bytes) -> None:
        """Write one character for a driver that has no queues: the emergency write (5.3.5)."""
        if offset == EMERGENCY_WRITE and 0 in self.ports:
            self.ports[0].chardev.write(data[:1])

    def close(self) -> None:
        """Close the device and all chardevs. Idempotent."""
        super().close()
        for port in self.ports.values():
            port.chardev.close()


def _drop(queue: Queue) -> Waits:
    for chain in queue.batch(queue.size):
        queue.push(chain.id, 0)
    return Waits.FOR_DRIVER
