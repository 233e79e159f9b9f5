"""rtnetlink: look network interfaces of the host up, bring them up, add addresses.

    nlmsghdr | ifinfomsg or ifaddrmsg | attribute | attribute ...     (rtnetlink(7))

Three requests are enough, so they are made here: pyroute2 knows all of them, but importing it
costs an emulated host seconds.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Interface, IPv6Interface

ALIGN: Final = 4
"""Bytes: alignment of messages and attributes (netlink(3))."""

HEADER: Final[int] = ffi.sizeof("struct nlmsghdr")
ATTRIBUTE: Final[int] = ffi.sizeof("struct nlattr")
HINTS: Final = {
    errno.EPERM: "run as root, or prepare the interface for your user",
    errno.EOPNOTSUPP: "what it is to be a port of is no bridge",
}

LARGEST: Final = 1 << 16
"""Bytes: the kernel sends no longer answer at once."""

ERRNO_MOST: Final = 4095
"""The largest number that the kernel returns as an error (MAX_ERRNO, include/linux/err.h)."""


class Link(NamedTuple):
    """A network interface.

    mtu         bytes
    master      index of the bridge that it is a port of, or 0
    tun_queues  how many queues programs have open, if it is a TAP made for several queues
    """

    ifindex: int
    name: str
    is_up: bool
    mtu: int
    master: int
    tun_queues: int


class NetlinkError(KernelError):
    """The kernel refused a request. The hint is the kernel's own message, if it sent one."""

    def __init__(self, what: str, number: int, words: str) -> None:
        super().__init__(what, number, words or HINTS.get(number, ""))


def _attribute(kind: int, data: bytes) -> bytes:
    length = ATTRIBUTE + len(data)
    head = bytes(ffi.buffer(ffi.new("struct nlattr *", {"nla_len": length, "nla_type": kind})))
    return head + data + bytes(-length % ALIGN)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= ATTRIBUTE:
        head = ffi.from_buffer("struct nlattr *", data)
        length = max(head.nla_len, ATTRIBUTE)
        yield head.nla_type, data[ATTRIBUTE:length]
        data = data[length + -length % ALIGN :]


def _struct(what: str, name: str, data: bytes) -> Any:
    """Return the start of *data* as struct *name*. Raises `NetlinkError`: it is shorter."""
    if len(data) < ffi.sizeof(name):
        raise NetlinkError(what, errno.EBADMSG, "")
    return ffi.from_buffer(f"{name} *", data)


def _number(value: int) -> bytes:
    return struct.pack("=I", value)


def _name(value: str) -> bytes:
    return value.encode() + b"\0"


class Netlink(Closeable):
    """Own a socket to the kernel's rtnetlink. Methods raise `NetlinkError` and OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, lib.NETLINK_ROUTE)
        self._socket.setsockopt(lib.SOL_NETLINK, lib.NETLINK_EXT_ACK, 1)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def _request(self, what: str, kind: int, flags: int, body: bytes) -> bytes:
        """Send one request; return the body of the answer, or of the acknowledgement."""
        self._sequence += 1
        head = {
            "nlmsg_len": HEADER + len(body),
            "nlmsg_type": kind,
            "nlmsg_flags": lib.NLM_F_REQUEST | flags,
            "nlmsg_seq": self._sequence,
        }
        self._socket.send(bytes(ffi.buffer(ffi.new("struct nlmsghdr *", head))) + body)
        answer = self._socket.recv(LARGEST)
        found = _struct(what, "struct nlmsghdr", answer)
        data = answer[HEADER : found.nlmsg_len]
        if found.nlmsg_type == lib.NLMSG_ERROR:
            self._check(what, found.nlmsg_flags, data)
        return data

    @staticmethod
    def _check(what: str, flags: int, data: bytes) -> None:
        answer = _struct(what, "struct nlmsgerr", data)
        number = -answer.error
        if number == 0:
            return
        if not 0 < number <= ERRNO_MOST:
            raise NetlinkError(what, errno.EBADMSG, "")
        words = ""
        if flags & lib.NLM_F_ACK_TLVS:
            echoed = answer.msg.nlmsg_len
            skipped = HEADER if flags & lib.NLM_F_CAPPED else echoed
            place = ffi.sizeof("struct nlmsgerr") - HEADER + skipped + -skipped % ALIGN
            texts = dict(_attributes(data[place:]))
            words = texts.get(lib.NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
        raise NetlinkError(what, number, words)

    def link(self, name: str) -> Link | None:
        """Return the interface called *name*; None: there is no such interface."""
        body = _info() + _attribute(lib.IFLA_IFNAME, _name(name))
        try:
            data = self._request(f"looking up {name}", lib.RTM_GETLINK, 0, body)
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        info = _struct(f"looking up {name}", "struct ifinfomsg", data)
        found = dict(_attributes(data[ffi.sizeof("struct ifinfomsg") :]))

        def number(attributes: dict[int, bytes], kind: int) -> int:
            return int.from_bytes(attributes.get(kind, b""), "little")

        kind = dict(_attributes(found.get(lib.IFLA_LINKINFO, b"")))
        tun = dict(_attributes(kind.get(lib.IFLA_INFO_DATA, b"")))
        counts = (lib.IFLA_TUN_NUM_QUEUES, lib.IFLA_TUN_NUM_DISABLED_QUEUES)
        is_tun = kind.get(lib.IFLA_INFO_KIND, b"").startswith(b"tun")
        return Link(
            ifindex=info.ifi_index,
            name=name,
            is_up=bool(info.ifi_flags & lib.IFF_UP),
            mtu=number(found, lib.IFLA_MTU),
            master=number(found, lib.IFLA_MASTER),
            tun_queues=sum(number(tun, each) for each in counts) if is_tun else 0,
        )

    def set_link(self, link: Link, *, mtu: int | None = None, master: int | None = None) -> None:
        """Bring *link* up; set its MTU (bytes); join it to the bridge whose index is *master*."""
        attributes = b""
        if mtu is not None:
            attributes += _attribute(lib.IFLA_MTU, _number(mtu))
        if master is not None:
            attributes += _attribute(lib.IFLA_MASTER, _number(master))
        info = _info(ifi_index=link.ifindex, ifi_flags=lib.IFF_UP, ifi_change=lib.IFF_UP)
        what = f"bringing {link.name} up"
        self._request(what, lib.RTM_NEWLINK, lib.NLM_F_ACK, info + attributes)

    def add_address(self, link: Link, address: IPv4Interface | IPv6Interface) -> None:
        """Give *link* an *address* with its network. Giving it twice is no error."""
        info = {
            "ifa_family": socket.AF_INET if address.version == 4 else socket.AF_INET6,
            "ifa_prefixlen": address.network.prefixlen,
            "ifa_index": link.ifindex,
        }
        body = bytes(ffi.buffer(ffi.new("struct ifaddrmsg *", info)))
        for kind in (lib.IFA_LOCAL, lib.IFA_ADDRESS):
            body += _attribute(kind, address.packed)
        flags = lib.NLM_F_ACK | lib.NLM_F_CREATE | lib.NLM_F_REPLACE
        self._request(f"giving {link.name} {address}", lib.RTM_NEWADDR, flags, body)


def _info(**fields: Any) -> bytes:
    return bytes(ffi.buffer(ffi.new("struct ifinfomsg *", fields)))
