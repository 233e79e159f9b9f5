"""``--net``: a virtio network device, and the host's end of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.config.option import Key, number, parse_keys, split
from vmm.errors import UserError

if TYPE_CHECKING:
    from ipaddress import IPv4Interface, IPv6Interface
    from pathlib import Path

NAME_BYTES: Final = 15
"""Longest name of an interface, in bytes: IFNAMSIZ - 1."""

QUEUES_MAX: Final = 64
MTU_RANGE: Final = range(68, 65536)
"""From the least that IPv4 allows (RFC 791) to the most that the device can tell (VIRTIO 1.2,
5.1.4.1)."""

PORTS: Final = range(1, 65536)

USAGE: Final = (
    "write tap[=NAME][,mac=M][,mtu=N][,queues=N][,vhost=on|off][,bridge=B][,address=A/PREFIX], "
    "user[,forward=tcp|udp:HOST:GUEST]...[,host=on|off][,mac=M][,mtu=N] or none"
)


class NetKind(Enum):
    """The host's end of an interface: a TAP interface, or passt as the user."""

    TAP = "tap"
    USER = "user"


class Forward(NamedTuple):
    """Forward connections to the host's port *host* to the guest's port *guest*."""

    protocol: str
    host: int
    guest: int


@dataclass(frozen=True)
class NetConfig:
    """A network interface.

    text     the option as the user wrote it, for errors
    name     of the TAP interface; empty: the kernel chooses one
    mac      of the guest's interface; None: a random local address
    mtu      in bytes; None: the default of its kind
    queues   number of queue pairs
    vhost    whether vhost-net moves packets; None: if the kernel has it
    bridge   name of the bridge that the TAP interface joins
    address  of the host, on the TAP interface
    forwards  ports of the host that lead to the guest
    reaches_host  whether the router's address is the host's loopback
    relay    the socket in a lab host where passt, which runs outside, is to be had; None: start one
    """

    text: str
    kind: NetKind
    name: str = ""
    mac: bytes | None = None
    mtu: int | None = None
    queues: int = 1
    vhost: bool | None = None
    bridge: str | None = None
    address: IPv4Interface | IPv6Interface | None = None
    forwards: tuple[Forward, ...] = ()
    reaches_host: bool = False
    relay: Path | None = None

    @property
    def shares_memory(self) -> bool:
        """Whether another process moves packets, and so needs to map the guest's memory."""
        return self.kind is NetKind.USER and self.relay is None

    @property
    def option(self) -> str:
        """The option, as errors name it."""
        return f"--net {self.text}"


def parse_nets(texts: tuple[str, ...]) -> tuple[NetConfig, ...]:
    """Parse all ``--net`` options of a command line. Raises `UserError`."""
    if "none" in texts:
        if len(texts) > 1:
            raise UserError("--net none: there are others", "leave it out")
        return ()
    return tuple(parse_net(text) for text in texts)


def check_nets(nets: tuple[NetConfig, ...]) -> None:
    """Raise `UserError` if two of *nets* have one MAC address."""
    seen: dict[bytes, NetConfig] = {}
    for net in nets:
        if net.mac is not None and (other := seen.setdefault(net.mac, net)) is not net:
            raise UserError(
                f"{net.option}: {other.option} has this MAC address, too", "give each its own"
            )


def parse_net(text: str) -> NetConfig:
    """Parse one ``--net`` option. Raises `UserError`."""
    head, *parts = split(text)
    word, equals, name = head.partition("=")
    if word not in {kind.value for kind in NetKind} or (equals and word != "tap"):
        raise UserError(f"--net {text}: {head!r} is no kind of network", USAGE)
    if equals and not re.fullmatch(rf"[^\s/:%]{{1,{NAME_BYTES}}}", name):
        raise UserError(
            f"--net {text}: {name!r} is no interface's name",
            f"it has up to {NAME_BYTES} characters, but no space, /, : or %",
        )
    kind = NetKind(word)
    found = parse_keys(f"--net {text}", parts, KEYS[kind], USAGE)
    return NetConfig(
        text,
        kind,
        name,
        forwards=found.pop("forward", ()),
        reaches_host=found.pop("host", False),
        **found,
    )


def _mac(value: str) -> bytes:
    if not re.fullmatch("[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", value):
        raise ValueError("an address is six bytes: mac=52:54:00:12:34:56")
    mac = bytes.fromhex(value.replace(":", ""))
    if mac[0] & 1 or not any(mac):
        raise ValueError("that is a multicast address, or none: use one such as 52:54:00:12:34:56")
    return mac


def _switch(name: str) -> Key:
    def parse(value: str) -> bool:
        if value not in {"on", "off"}:
            raise ValueError(f"{name} is on or off")
        return value == "on"

    return Key(parse)


def _bridge(value: str) -> str:
    if not value:
        raise ValueError("name a bridge: bridge=br0")
    return value


def _address(value: str) -> IPv4Interface | IPv6Interface:
    if "/" not in value:
        raise ValueError("write an address of the host's with its network: address=10.0.0.1/24")
    return ip_interface(value)


def _forward(value: str) -> Forward:
    match = re.fullmatch("(tcp|udp):([0-9]{1,5}):([0-9]{1,5})", value)
    if match is None or int(match[2]) not in PORTS or int(match[3]) not in PORTS:
        raise ValueError("write forward=tcp:HOST:GUEST or udp:HOST:GUEST, with ports up to 65535")
    return Forward(match[1], int(match[2]), int(match[3]))


_BOTH: Final = {"mac": Key(_mac), "mtu": number(MTU_RANGE, "mtu")}
KEYS: Final = {
    NetKind.TAP: {
        **_BOTH,
        "queues": number(range(1, QUEUES_MAX + 1), "queues"),
        "vhost": _switch("vhost"),
        "bridge": Key(_bridge),
        "address": Key(_address),
    },
    NetKind.USER: {**_BOTH, "forward": Key(_forward, many=True), "host": _switch("host")},
}
"""The keys of each kind of network."""
