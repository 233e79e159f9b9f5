"""vhost-user: another process serves the rings (QEMU's manual, interop/vhost-user).

    guest --doorbell--> Inflight --kick--> daemon --call--> guest
                  '-------- in order ------->|  maps guest memory: the memfd goes over the socket

A daemon is begun with for each driver, and ended when that driver is: so what a daemon knows of a
driver ends with it, and nothing touches guest memory any more, whatever the daemon is up to.
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
        """Whatever has a back end: `vmm.virtio.vhost.service.Service`."""

        what: str

        def connect(self) -> socket.socket:
            """Start one, and return a connection to it."""

        def explain(self, problem: str) -> str:
            """Say what became of it."""

        @property
        def refused(self) -> bool:
            """Whether it ended because it could not do what it was asked."""

        def kill(self) -> None:
            """End it at once."""

        def cancel_waits(self) -> None:
            """Have it killed, whoever waits for it. From any thread; never waits."""

        def close(self) -> None:
            """End it."""


NOTHING: Final = Protocol(0)
UNWANTED: Final = F_EVENT_IDX | F_RING_PACKED
"""Ring features with which we could not tell what a daemon had when it died (`Inflight`)."""
UNWANTED_IN_ORDER: Final = F_RING_PACKED
"""The same of one that uses chains in order: a packed ring does not say how far it got."""


class DaemonRefusedError(HostError):
    """The daemon ended by itself: it cannot do what it was asked for by an option."""

    exit_code = EXIT_USER


class DaemonLostError(HostError):
    """The daemon ended, and it did not say why: another one may not."""


class VhostUser(Closeable):
    """A `vmm.virtio.vhost.backend.VhostBackend` that is a process. Owns *server*.

    wanted    protocol features that it must have; MQ, if it has that, is used in any case
    in_order  it uses chains in the order they came, and none comes to harm that is done twice: so
              another one can go on where the used ring ends, and nobody need follow the ring

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
        """How many rings it has at most; 0 if it does not say."""
        self.before_hang_up: Callable[[int], object] | None = None
        """Called with the connection's descriptor before that is closed."""
        with ExitStack() as undo:
            undo.callback(self.close)
            self._features = self._open()
            undo.pop_all()

    # The connection

    @contextmanager
    def _talking(self) -> Iterator[Channel]:
        """Have the channel; what goes wrong with it is the daemon's end, and one clear error."""
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
        """Connect, agree upon the protocol, return the features."""
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
        """The descriptor that is readable once the daemon has gone; -1 if it is gone already."""
        return self._channel.fileno() if self._channel is not None else -1

    def read_config(self, size: int) -> bytes:
        """Return the first *size* bytes of the device's configuration (CONFIG)."""
        with self._talking() as channel:
            payload = channel.ask(Request.GET_CONFIG, message.get_config(size))
            data = message.parse_config(payload)
            if len(data) != size:
                raise ChannelError(f"has {len(data)} bytes of configuration, not {size}")
            return data

    # What a back end does

    def features(self) -> int:
        """Return the feature bits that it can do."""
        unwanted = UNWANTED_IN_ORDER if self._in_order else UNWANTED
        return int(self._features & ~unwanted & ~F_PROTOCOL_FEATURES)

    def start(self, features: int, memory: GuestMemory) -> None:
        """Prepare to serve a driver that accepted *features*, over *memory*, which has a file."""
        if self._channel is not None and self._channel.ended:
            self.kill()  # it has died since it was asked for its features
        if self._channel is None and self._open() != self._features:
            raise HostError(f"{self._server.what}: the daemon has other features than before")
        # Not files that only may be read: the daemon maps all for writing, too.
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
        """Serve ring number *index* from now on."""
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
        """Know what of *ring* is with the daemon; return what that is to be kicked by."""
        if index not in self._inflight:
            self._inflight[index] = Inflight(ring)
        self._inflight[index].start()
        return self._inflight[index].kick.fileno()

    def stop_ring(self, index: int) -> None:  # noqa: ARG002
        """End the daemon: so nothing touches any ring, whatever it is up to, or hangs at."""
        self.stop()

    def ring_error(self, index: int) -> str:
        """Say what is wrong with ring *index*."""
        return f"{self._server.what}: the daemon found queue {index} broken"

    def explain(self) -> str:
        """Say what became of the daemon, which hung up, or said something unasked."""
        return f"{self._server.what}: {self._server.explain('hung up, or spoke unasked')}"

    def kill(self) -> None:
        """End the daemon at once: it is not to be trusted any more, or gone already."""
        self._hang_up()
        self._server.kill()

    def cancel_waits(self) -> None:
        """Have whoever waits for the daemon wait no longer. From any thread; never waits."""
        self._server.cancel_waits()

    def requeue(self) -> dict[int, int]:
        """Return, for each ring that is served, the index that another process can begin with.

        What the daemon, which is no more, had and did not use, is available again. Raises
        `HostError` if it is not known what that was.
        """
        for index, ring in self._rings.items():
            base = take_over(ring) if self._in_order else self._inflight[index].requeue()
            self._rings[index] = ring._replace(base=base)
        return {index: ring.base for index, ring in self._rings.items()}

    def restart(self, memory: GuestMemory) -> None:
        """Have another process go on where the last one, which is no more, left off.

        Raises `DaemonLostError` if that one ended, too: then it may be tried again.
        """
        self.requeue()
        self.start(self._accepted, memory)
        for index, ring in list(self._rings.items()):
            self.start_ring(index, ring)

    def stop(self) -> None:
        """End the daemon; when this returns, nothing of it touches guest memory."""
        self._hang_up()
        self._rings.clear()
        while self._inflight:
            self._inflight.popitem()[1].close()
        self._server.close()

    def close(self) -> None:
        """End the daemon. Idempotent."""
        self.stop()
