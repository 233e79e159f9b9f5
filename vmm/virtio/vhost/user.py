"""vhost-user: another process serves the rings (QEMU's manual, interop/vhost-user).

    guest --doorbell--> Inflight --kick--> daemon --call--> guest
                  '--- used in order ------->|  maps guest memory: the memfd goes over the socket

Each driver gets a daemon of its own, which ends when the driver does. So no state of a former
driver is left, and nothing touches guest memory afterwards, whatever the daemon does.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from vmm.closeable import Closeable
from vmm.errors import EXIT_USER, HostError
from vmm.virtio.device import F_EVENT_IDX, F_RING_PACKED
from vmm.virtio.vhost import message
from vmm.virtio.vhost.channel import Channel, ChannelError, GoneError
from vmm.virtio.vhost.inflight import Inflight, take_over
from vmm.virtio.vhost.message import F_PROTOCOL_FEATURES, STATE, U64, Protocol, Request

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from typing import Protocol as Interface

    from vmm.memory import GuestMemory
    from vmm.virtio.vhost.backend import Ring

    class Server(Interface):
        """What starts and ends daemons: `vmm.virtio.vhost.service.Service`."""

        what: str

        def connect(self) -> socket.socket:
            """Start a daemon, and return a connection to it."""

        def explain(self, problem: str) -> str:
            """Return what became of the daemon."""

        @property
        def refused(self) -> bool:
            """Whether the daemon ended because it could not do what it was asked."""

        def kill(self) -> None:
            """Kill the daemon. When this returns, it is gone."""

        def cancel_waits(self) -> None:
            """Kill the daemon, so that whoever waits for it goes on. Does not wait."""

        def close(self) -> None:
            """End the daemon, which gets time to write what it has."""


NOTHING: Final = Protocol(0)
UNWANTED: Final = F_EVENT_IDX | F_RING_PACKED
"""Ring features with which `Inflight` cannot tell what a daemon had when it died."""
UNWANTED_IN_ORDER: Final = F_RING_PACKED
"""The same for a daemon that uses chains in order: a packed ring has no index to go on from."""


class DaemonRefusedError(HostError):
    """The daemon ended by itself with an error: it cannot do what an option asked for."""

    exit_code = EXIT_USER


class DaemonLostError(HostError):
    """The daemon ended without a reason: another one may work."""


class VhostUser(Closeable):
    """A daemon as a `vmm.virtio.vhost.backend.VhostBackend`. Owns *server*.

    wanted    protocol features that the daemon must have; MQ is used if the daemon has it
    in_order  the daemon uses chains in the order they came, and doing a request twice is harmless:
              another daemon can go on where the used ring ends, without `Inflight`

    Raises `HostError`, which names ``server.what``, the option; `DaemonRefusedError` if the daemon
    cannot do what it is asked.
    """

    resets_rings = False

    def __init__(
        self, server: Server, wanted: Protocol = NOTHING, *, in_order: bool = False
    ) -> None:
        self._server = server
        self._wanted = wanted
        self._in_order = in_order
        self._channel: Channel | None = None
        self._rings: dict[int, Ring] = {}
        self._inflight: dict[int, Inflight] = {}
        self._accepted = 0
        self.queues = 0
        """How many rings the daemon has at most; 0 if it does not tell."""
        self.before_hang_up: Callable[[int], object] | None = None
        """Called with the connection's descriptor before the connection is closed."""
        with ExitStack() as undo:
            undo.callback(self.close)
            self._features = self._open()
            undo.pop_all()

    # The connection

    @contextmanager
    def _talking(self) -> Iterator[Channel]:
        """Yield the channel. A `ChannelError` ends the connection and becomes one clear error."""
        if self._channel is None:
            raise HostError(f"{self._server.what}: the daemon is gone")
        try:
            yield self._channel
        except ChannelError as error:
            self._hang_up()
            text = f"{self._server.what}: {self._server.explain(error.message)}"
            if self._server.refused:
                raise DaemonRefusedError(text) from error
            if isinstance(error, GoneError):
                raise DaemonLostError(text) from error
            raise HostError(text, "a newer version of it may help") from error

    def _open(self) -> int:
        """Connect, negotiate the protocol, return the features."""
        self._channel = Channel(self._server.connect())
        with self._talking() as channel:
            features = channel.ask_number(Request.GET_FEATURES)
            if not features & F_PROTOCOL_FEATURES:
                raise ChannelError("knows no protocol features")
            offered = channel.ask_number(Request.GET_PROTOCOL_FEATURES)
            if lacks := self._wanted & ~offered:
                raise ChannelError(f"lacks {lacks.name}")
            agreed = Protocol(offered) & (self._wanted | Protocol.MQ | Protocol.REPLY_ACK)
            channel.tell(Request.SET_PROTOCOL_FEATURES, U64.pack(agreed))
            channel.acknowledged = Protocol.REPLY_ACK in agreed
            channel.tell(Request.SET_OWNER)
            if Protocol.MQ in agreed:
                self.queues = channel.ask_number(Request.GET_QUEUE_NUM)
        return features

    def _hang_up(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            if self.before_hang_up is not None:
                self.before_hang_up(channel.fileno())
            channel.close()

    @property
    def connection(self) -> int:
        """A descriptor that is readable once the daemon is gone; -1 if the connection is closed."""
        return self._channel.fileno() if self._channel is not None else -1

    def read_config(self, size: int) -> bytes:
        """Return the first *size* bytes of the device's configuration (GET_CONFIG)."""
        with self._talking() as channel:
            payload = channel.ask(Request.GET_CONFIG, message.get_config(size))
            data = message.parse_config(payload)
            if len(data) != size:
                raise ChannelError(f"has {len(data)} bytes of configuration, not {size}")
            return data

    # The back end (`VhostBackend`)

    def features(self) -> int:
        """Return the feature bits that the daemon supports and `requeue` can deal with."""
        unwanted = UNWANTED_IN_ORDER if self._in_order else UNWANTED
        return int(self._features & ~unwanted & ~F_PROTOCOL_FEATURES)

    def start(self, features: int, memory: GuestMemory) -> None:
        """Prepare for a driver that accepted *features*. *memory* must be a memfd."""
        if self._channel is not None and self._channel.ended:
            self.kill()  # it died after it was asked for its features
        if self._channel is None and self._open() != self._features:
            raise HostError(f"{self._server.what}: the daemon has other features than before")
        # Without read-only regions: daemons map all memory for writing.
        regions = [each for each in memory if not each.read_only]
        assert len(regions) <= message.REGIONS_MAX, "the message has room for no more"
        assert all(region.fd >= 0 for region in regions), "AddressSpace was not told"
        self._accepted = features
        with self._talking() as channel:
            mine = features & self._features | F_PROTOCOL_FEATURES
            channel.tell(Request.SET_FEATURES, U64.pack(mine))
            fds = [region.fd for region in regions]
            channel.tell(Request.SET_MEM_TABLE, message.mem_table(regions), fds)

    def start_ring(self, index: int, ring: Ring) -> None:
        """Serve ring *index* from now on."""
        self._rings[index] = ring
        kick = ring.kick if self._in_order else self._follow(index, ring)
        with self._talking() as channel:
            channel.tell(Request.SET_VRING_NUM, STATE.pack(index, ring.size))
            channel.tell(Request.SET_VRING_BASE, STATE.pack(index, ring.base))
            channel.tell(Request.SET_VRING_ADDR, message.vring_addr(index, ring))
            for request, fd in (
                (Request.SET_VRING_ERR, ring.err),
                (Request.SET_VRING_CALL, ring.call),
                (Request.SET_VRING_KICK, kick),
            ):
                channel.tell(request, U64.pack(index), [fd])
            channel.tell(Request.SET_VRING_ENABLE, STATE.pack(index, 1))

    def _follow(self, index: int, ring: Ring) -> int:
        """Start recording what of *ring* the daemon has; return the daemon's kick eventfd."""
        if index not in self._inflight:
            self._inflight[index] = Inflight(ring)
        self._inflight[index].start()
        return self._inflight[index].kick.fileno()

    def stop_ring(self, index: int) -> None:  # noqa: ARG002
        """End the daemon: nothing else is sure to stop it from touching rings."""
        self.stop()

    def pause_ring(self, index: int) -> None:
        """Stop the daemon's work on ring *index* (GET_VRING_BASE), and note where the ring is.

        A daemon that does not answer is killed, so that the ring is not touched either way.
        """
        if index in self._inflight:
            self._inflight[index].stop()  # it passes no notification on any more
        try:
            with self._talking() as channel:
                answer = channel.ask(Request.GET_VRING_BASE, STATE.pack(index, 0))
                if len(answer) != STATE.size or STATE.unpack(answer)[0] != index:
                    raise ChannelError("answered GET_VRING_BASE for another ring")
        except HostError:
            self.kill()
            raise
        self._rings[index] = self._rings[index]._replace(base=STATE.unpack(answer)[1])

    def resume_ring(self, index: int) -> None:
        """Set ring *index* up again where it was."""
        self.start_ring(index, self._rings[index])

    def ring_error(self, index: int) -> str:
        """Return what is wrong with ring *index*."""
        return f"{self._server.what}: the daemon found queue {index} broken"

    def explain(self) -> str:
        """Return what became of the daemon, which hung up or sent something unasked."""
        return f"{self._server.what}: {self._server.explain('hung up, or spoke unasked')}"

    def kill(self) -> None:
        """Kill the daemon: it cannot be trusted any more, or is gone already."""
        self._hang_up()
        self._server.kill()

    def cancel_waits(self) -> None:
        """Kill the daemon, so that whoever waits for it goes on. Thread-safe; does not wait."""
        self._server.cancel_waits()

    def requeue(self) -> dict[int, int]:
        """Make available again what the daemon had; return where each ring goes on.

        The daemon must be gone. Returns the index that another server begins with, by ring. Raises
        `HostError` if it is not known what the daemon had.
        """
        for index, ring in self._rings.items():
            base = take_over(ring) if self._in_order else self._inflight[index].requeue()
            self._rings[index] = ring._replace(base=base)
        return {index: ring.base for index, ring in self._rings.items()}

    def restart(self, memory: GuestMemory) -> None:
        """Start another daemon that goes on where the last one, which must be gone, stopped.

        Raises `HostError`; `DaemonLostError` if the new one ended, too: another try may work.
        """
        self.requeue()
        self.start(self._accepted, memory)
        for index, ring in list(self._rings.items()):
            self.start_ring(index, ring)

    def stop(self) -> None:
        """End the daemon. When this returns, it does not touch guest memory any more."""
        self._hang_up()
        self._rings.clear()
        while self._inflight:
            self._inflight.popitem()[1].close()
        self._server.close()

    def close(self) -> None:
        """End the daemon. Idempotent."""
        self.stop()
