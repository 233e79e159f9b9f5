"""Feature bits, configuration and control queue of network devices (VIRTIO 1.2, 5.1).

queues  0 receive, 1 transmit, 2 receive, 3 transmit ... then the control queue, after the last
        pair that the driver knows of: with MQ all pairs, without it the first (5.1.2)
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from vmm._native import ffi, lib
from vmm.errors import HostError
from vmm.virtio.queue import RingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.virtio.queue import Chain

QUEUE_SIZE: Final = 256

F_CSUM: Final = 1 << lib.VIRTIO_NET_F_CSUM
F_GUEST_CSUM: Final = 1 << lib.VIRTIO_NET_F_GUEST_CSUM
F_CTRL_GUEST_OFFLOADS: Final = 1 << lib.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
F_MTU: Final = 1 << lib.VIRTIO_NET_F_MTU
F_MAC: Final = 1 << lib.VIRTIO_NET_F_MAC
F_GUEST_TSO4: Final = 1 << lib.VIRTIO_NET_F_GUEST_TSO4
F_GUEST_TSO6: Final = 1 << lib.VIRTIO_NET_F_GUEST_TSO6
F_GUEST_ECN: Final = 1 << lib.VIRTIO_NET_F_GUEST_ECN
F_HOST_TSO4: Final = 1 << lib.VIRTIO_NET_F_HOST_TSO4
F_HOST_TSO6: Final = 1 << lib.VIRTIO_NET_F_HOST_TSO6
F_HOST_ECN: Final = 1 << lib.VIRTIO_NET_F_HOST_ECN
F_MRG_RXBUF: Final = 1 << lib.VIRTIO_NET_F_MRG_RXBUF
F_STATUS: Final = 1 << lib.VIRTIO_NET_F_STATUS
F_CTRL_VQ: Final = 1 << lib.VIRTIO_NET_F_CTRL_VQ
F_MQ: Final = 1 << lib.VIRTIO_NET_F_MQ

GUEST_OFFLOADS: Final = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN
"""Packets that the driver accepts with a checksum or a segmentation left undone."""

HOST_OFFLOADS: Final = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN
"""Packets that the device accepts with a checksum or a segmentation left undone."""

PACKETS: Final = GUEST_OFFLOADS | HOST_OFFLOADS | F_MRG_RXBUF
"""Features that depend on the back end that moves the packets."""

REQUIRES: Final = {
    F_GUEST_TSO4: F_GUEST_CSUM,
    F_GUEST_TSO6: F_GUEST_CSUM,
    F_GUEST_ECN: F_GUEST_TSO4 | F_GUEST_TSO6,
    F_HOST_TSO4: F_CSUM,
    F_HOST_TSO6: F_CSUM,
    F_HOST_ECN: F_HOST_TSO4 | F_HOST_TSO6,
}
"""For each feature, those of which at least one must be accepted with it (5.1.3.1)."""


SET_PAIRS: Final = (lib.VIRTIO_NET_CTRL_MQ, lib.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET)
SET_OFFLOADS: Final = (
    lib.VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    lib.VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
)
"""Commands of the control queue: class and command (5.1.6.5)."""

COMMAND_BYTES: Final = 2
"""Class and command. Data follow, then a status byte that the device writes."""

LONGEST: Final = 8
"""Bytes of data of the longest command in `Control`."""


class Address(NamedTuple):
    """What the configuration tells the driver.

    mac    6 bytes
    mtu    bytes; 0: the driver is not told
    pairs  of queues
    """

    mac: bytes
    mtu: int = 0
    pairs: int = 1

    def features(self, backend: int, *, control: bool = False) -> int:
        """Return the features to offer over a back end with features *backend*.

        control  there is a control queue, for offloads and, with several pairs, their number
        """
        found: int = F_MAC | F_STATUS | backend & PACKETS
        found |= F_MTU if self.mtu else 0
        if control:
            found |= F_CTRL_VQ | F_CTRL_GUEST_OFFLOADS
            found |= F_MQ if self.pairs > 1 else 0
        return found

    def config(self) -> bytes:
        """Return ``struct virtio_net_config`` (5.1.4): the link is up."""
        fields = {
            "mac": self.mac,
            "status": lib.VIRTIO_NET_S_LINK_UP,
            "max_virtqueue_pairs": self.pairs,
            "mtu": self.mtu,
        }
        return bytes(ffi.buffer(ffi.new("struct virtio_net_config *", fields)))


class Switch(Protocol):
    """What the control queue controls. Its methods raise `HostError`."""

    def set_pairs(self, pairs: int) -> None:
        """Use the first *pairs* pairs of queues only."""

    def set_offloads(self, features: int) -> None:
        """Pass the driver packets with the offloads in *features* (GUEST_*) left undone."""


def unmet(accepted: int) -> int:
    """Return those of the *accepted* features whose requirements are not accepted."""
    return sum(
        feature
        for feature, needs in REQUIRES.items()
        if accepted & feature and not accepted & needs
    )


def without_unmet(features: int) -> int:
    """Return *features* without those whose requirements are not among them."""
    while bad := unmet(features):
        features &= ~bad
    return features


class ControlCommand(NamedTuple):
    """A command of the control queue.

    feature  the driver must have accepted it
    data     how the command's data are laid out
    do       executes it; returns whether the command was valid
    """

    feature: int
    data: struct.Struct
    do: Callable[[int], bool]


class Control:
    """The control queue's commands (5.1.6.5).

    accepted  features of the driver
    pairs     of queues that the driver knows of
    """

    def __init__(self, switch: Switch, accepted: int, pairs: int) -> None:
        self._switch = switch
        self._accepted = accepted
        self._pairs = pairs
        self._commands: dict[tuple[int, int], ControlCommand] = {
            SET_PAIRS: ControlCommand(F_MQ, struct.Struct("<H"), self._set_pairs),
            SET_OFFLOADS: ControlCommand(
                F_CTRL_GUEST_OFFLOADS, struct.Struct("<Q"), self._set_offloads
            ),
        }

    def do(self, chain: Chain) -> int:
        """Execute the command in *chain* and write its status; return how many bytes that took.

        Raises `RingError` for a chain without room for command and status.
        """
        if chain.readable < COMMAND_BYTES or chain.writable < 1:
            raise RingError(lib.PYVMM_RING_REQUEST)
        request = chain.read(COMMAND_BYTES + LONGEST + 1)
        command = self._commands.get((request[0], request[1]))
        data = request[COMMAND_BYTES:]
        done = False
        if command and self._accepted & command.feature and len(data) == command.data.size:
            with suppress(HostError):
                done = command.do(*command.data.unpack(data))
        return chain.write(bytes([lib.VIRTIO_NET_OK if done else lib.VIRTIO_NET_ERR]))

    def _set_pairs(self, pairs: int) -> bool:
        if not 1 <= pairs <= self._pairs:
            return False
        self._switch.set_pairs(pairs)
        return True

    def _set_offloads(self, features: int) -> bool:
        if features & ~(self._accepted & GUEST_OFFLOADS) or unmet(features):
            return False
        self._switch.set_offloads(features)
        return True
