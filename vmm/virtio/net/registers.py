"""The network device's registers and control queue (VIRTIO 1.2, 5.1); packets go elsewhere.

queues  0 receive, 1 transmit, 2 receive, 3 transmit ... and one for control after the last
        pair that the driver knows of: MQ tells whether it knows of more than one (5.1.2)
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
"""Packets that the guest takes unfinished."""

HOST_OFFLOADS: Final = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN
"""Packets that we take unfinished."""

PACKETS: Final = GUEST_OFFLOADS | HOST_OFFLOADS | F_MRG_RXBUF
"""What is up to whoever moves the packets."""

REQUIRES: Final = {
    F_GUEST_TSO4: F_GUEST_CSUM,
    F_GUEST_TSO6: F_GUEST_CSUM,
    F_GUEST_ECN: F_GUEST_TSO4 | F_GUEST_TSO6,
    F_HOST_TSO4: F_CSUM,
    F_HOST_TSO6: F_CSUM,
    F_HOST_ECN: F_HOST_TSO4 | F_HOST_TSO6,
}
"""Feature: those of which it needs one (5.1.3.1)."""


SET_PAIRS: Final = (lib.VIRTIO_NET_CTRL_MQ, lib.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET)
SET_OFFLOADS: Final = (
    lib.VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    lib.VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
)
"""Commands of the control queue: class and command (5.1.6.5)."""

COMMAND_BYTES: Final = 2
"""Class and command; data follow, then a byte for the device to write."""

LONGEST: Final = 8
"""Bytes of data: what we know has no more."""


class Address(NamedTuple):
    """What the driver is told: its MAC address and, unless 0, its MTU; how many pairs there are."""

    mac: bytes
    mtu: int = 0
    pairs: int = 1

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
    """What the control queue controls. Raises `HostError`."""

    def set_pairs(self, pairs: int) -> None:
        """Use the first *pairs* pairs of queues only."""

    def set_offloads(self, features: int) -> None:
        """Send the driver packets that are unfinished as GUEST_* *features* say."""


def unmet(accepted: int) -> int:
    """Return those of the *accepted* features whose needs are not accepted."""
    return sum(
        feature
        for feature, needs in REQUIRES.items()
        if accepted & feature and not accepted & needs
    )


def without_unmet(features: int) -> int:
    """Return *features* without those whose needs are not among them."""
    while bad := unmet(features):
        features &= ~bad
    return features


class ControlCommand(NamedTuple):
    """A command of the control queue: what it takes to be known, its data, what does it."""

    feature: int
    data: struct.Struct
    do: Callable[[int], bool]


class Control:
    """The control queue's commands (5.1.6.5), of a driver that *accepted* those features.

    *pairs* is how many pairs of queues it knows of.
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
        """Do one; return how many bytes were written. Raises `RingError` for what is none."""
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
