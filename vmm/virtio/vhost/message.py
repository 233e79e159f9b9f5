"""vhost-user's messages: numbers and layouts, from QEMU's manual (interop/vhost-user).

No kernel header has them. Everything is in the host's byte order.

    request  flags  size   payload
    u32      u32    u32    size bytes; descriptors beside it (SCM_RIGHTS)
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.memory import Region
    from vmm.virtio.vhost.backend import Ring

HEADER: Final = struct.Struct("=III")
U64: Final = struct.Struct("=Q")
STATE: Final = struct.Struct("=II")
"""A ring's index, and a number."""
_ADDRESS: Final = struct.Struct("=IIQQQQ")
_TABLE: Final = struct.Struct("=II")
_REGION: Final = struct.Struct("=QQQQ")
_CONFIG: Final = struct.Struct("=III")

VERSION: Final = 1
VERSION_MASK: Final = 3
REPLY: Final = 1 << 2
NEED_REPLY: Final = 1 << 3

PAYLOAD_MAX: Final = 4096
"""Bytes: more than any reply to our requests has."""
REGIONS_MAX: Final = 8
"""Descriptors that one message can carry."""

F_PROTOCOL_FEATURES: Final = 1 << 30
"""VHOST_USER_F_PROTOCOL_FEATURES: the feature bit that says that protocol features exist."""


class Protocol(IntFlag):
    """Protocol features: VHOST_USER_PROTOCOL_F_*."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    CONFIG = 1 << 9


class Request(IntEnum):
    """The requests that are sent to back ends: VHOST_USER_*."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24


def mem_table(regions: Sequence[Region]) -> bytes:
    """Return SET_MEM_TABLE's payload; the regions' files go with it, in this order."""
    return _TABLE.pack(len(regions), 0) + b"".join(
        _REGION.pack(region.base, region.size, region.host_address, region.offset)
        for region in regions
    )


def vring_addr(index: int, ring: Ring) -> bytes:
    """Return SET_VRING_ADDR's payload: our addresses, which SET_MEM_TABLE's table translates."""
    areas = ring.host
    return _ADDRESS.pack(index, 0, areas.descriptors, areas.device, areas.driver, 0)


def get_config(size: int) -> bytes:
    """Return GET_CONFIG's payload, for the first *size* bytes of the configuration."""
    return _CONFIG.pack(0, size, 0) + bytes(size)


def parse_config(payload: bytes) -> bytes:
    """Return the configuration in GET_CONFIG's reply; b"" if the reply is malformed."""
    if len(payload) < _CONFIG.size:
        return b""
    _, size, _ = _CONFIG.unpack_from(payload)
    data = payload[_CONFIG.size :]
    return data if len(data) == size else b""
