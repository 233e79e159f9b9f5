"""TAP interfaces of the host (drivers/net/tun.c): made or found, with a queue for each pair.

guest --> queue file --> interface --> bridge, or an address of the host
      <--            <--
"""

from __future__ import annotations

import errno
from contextlib import ExitStack, contextmanager
from enum import IntEnum, unique
from typing import TYPE_CHECKING, ClassVar, Final

from vmm._native import ffi, lib
from vmm.cause import Cause
from vmm.closeable import Closeable
from vmm.errors import HostError, KernelError, UserError
from vmm.fd import DeviceFile
from vmm.virtio.net.netlink import Netlink, NetlinkError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Interface, IPv6Interface

    from vmm.cause import Table

PATH: Final = "/dev/net/tun"
NAME_BYTES: Final[int] = lib.IFNAMSIZ - 1
_SETIFF: Final = "tun_set_iff (drivers/net/tun.c)"

TEMPLATE: Final = "tap%d"
"""The kernel replaces %d by the first free number."""


@unique
class TunIoctl(IntEnum):
    """Requests on /dev/net/tun."""

    TUNSETIFF = lib.TUNSETIFF
    TUNSETQUEUE = lib.TUNSETQUEUE
    TUNSETOFFLOAD = lib.TUNSETOFFLOAD
    TUNSETVNETHDRSZ = lib.TUNSETVNETHDRSZ


class TapQueue(DeviceFile):
    """One queue of a TAP interface; a virtio header precedes each packet."""

    module = "tun"
    causes: ClassVar[Table] = {
        ("TUNSETIFF", errno.EPERM): (
            Cause(
                "only root makes interfaces",
                "make one that is yours (ip tuntap add NAME mode tap user $USER, then ip link set "
                "NAME up) and name it, or use --net user",
                _SETIFF,
            ),
        ),
        ("TUNSETIFF", errno.EBUSY): (
            Cause("another program has this interface", "name another", _SETIFF),
        ),
        ("TUNSETIFF", errno.EINVAL): (
            Cause(
                "there is such an interface, but it is no TAP, or not one for several queues",
                "name another",
                _SETIFF,
            ),
        ),
        ("TUNSETIFF", errno.E2BIG): (
            Cause("the interface has no more queues than that", "ask for fewer", _SETIFF),
        ),
        ("TUNSETOFFLOAD", errno.EINVAL): (
            Cause(
                "the kernel's TAP does not know one of these offloads",
                "",
                "set_offload (drivers/net/tun.c)",
            ),
        ),
    }

    def interface(self, request: TunIoctl, name: str, flags: int) -> str:
        """Issue *request*, which takes a ``struct ifreq``; return the interface's name."""
        text = ffi.new("char[]", lib.IFNAMSIZ)
        text[0 : len(name)] = name.encode()
        result = lib.pyvmm_tun_interface(self.fileno(), request, text, flags)
        self.checked(result, request, {"name": name, "flags": flags})
        return str(ffi.string(text).decode())


class Tap(Closeable):
    """Own the queues of interface *name*, which is made if it does not exist.

    *option* is for messages of errors. An interface that was made here disappears when its queues
    are closed. At first only the first queue is attached: see `set_pairs`. Raises `HostError` and
    `UserError`.
    """

    def __init__(self, name: str, queues: int, option: str) -> None:
        self._option = option
        self._owned = ExitStack()
        self.queues: list[TapQueue] = []
        self._pairs = queues
        flags = lib.IFF_TAP | lib.IFF_NO_PI | lib.IFF_VNET_HDR
        with ExitStack() as undo:
            undo.callback(self.close)
            if queues > 1:
                flags |= lib.IFF_MULTI_QUEUE
            self._check_free(name)
            self.name = self._add(name or TEMPLATE, flags)
            for _ in range(1, queues):
                self._add(self.name, flags)
            self.set_pairs(1)
            undo.pop_all()

    def _check_free(self, name: str) -> None:
        """Raise `UserError` if another program has queues of it, which the kernel would allow."""
        with self._netlink() as netlink:
            link = netlink.link(name) if name else None
            if link is not None and link.tun_queues:
                raise UserError(
                    f"{self._option}: another program has this interface", "name another"
                )

    def _add(self, name: str, flags: int) -> str:
        queue = self._owned.enter_context(TapQueue(PATH, self._option))
        try:
            name = queue.interface(TunIoctl.TUNSETIFF, name, flags)
        except KernelError as error:
            if error.errno != errno.EINVAL or flags & lib.IFF_MULTI_QUEUE:
                raise
            # An interface made for several queues wants the flag with each of them.
            name = queue.interface(TunIoctl.TUNSETIFF, name, flags | lib.IFF_MULTI_QUEUE)
        size = lib.PYVMM_NET_HEADER
        queue.ioctl_value(TunIoctl.TUNSETVNETHDRSZ, "int", size, size=size)
        self.queues.append(queue)
        return name

    def set_pairs(self, pairs: int) -> None:
        """Attach the first *pairs* queues only: packets arrive there. Raises `KernelError`."""
        for index in range(min(pairs, self._pairs), max(pairs, self._pairs)):
            flags = lib.IFF_ATTACH_QUEUE if index < pairs else lib.IFF_DETACH_QUEUE
            self.queues[index].interface(TunIoctl.TUNSETQUEUE, "", flags)
        self._pairs = pairs

    def set_offload(self, flags: int) -> None:
        """Let packets arrive with these offloads (TUN_F_*) left undone. Raises `KernelError`."""
        self.queues[0].ioctl(TunIoctl.TUNSETOFFLOAD, flags, flags=flags)

    def configure(
        self, *, mtu: int | None, bridge: str | None, address: IPv4Interface | IPv6Interface | None
    ) -> None:
        """Bring the interface up; change only what differs.

        mtu      bytes
        bridge   the bridge to join
        address  the host's, with its network

        Raises `HostError`, and `UserError` if there is no such bridge.
        """
        with self._netlink() as netlink:
            link = netlink.link(self.name)
            if link is None:
                raise HostError(f"{self._option}: {self.name} is gone", "try again")
            master = None
            if bridge is not None:
                found = netlink.link(bridge)
                if found is None:
                    raise UserError(
                        f"{self._option}: there is no interface {bridge}",
                        f"make the bridge: ip link add {bridge} type bridge",
                    )
                master = found.ifindex if found.ifindex != link.master else None
            wanted = mtu if mtu != link.mtu else None
            if not link.is_up or wanted is not None or master is not None:
                netlink.set_link(link, mtu=wanted, master=master)
            if address is not None:
                netlink.add_address(link, address)

    @contextmanager
    def _netlink(self) -> Iterator[Netlink]:
        """Open rtnetlink; errors name the option. Raises `HostError`."""
        try:
            with Netlink() as netlink:
                yield netlink
        except NetlinkError as error:
            call = f"{self._option}: {error.call}"
            raise KernelError(call, error.errno, error.hint) from error
        except OSError as error:
            raise HostError(f"{self._option}: netlink: {error.strerror}") from error

    def close(self) -> None:
        """Close the queues, which no back end may use any more. Idempotent."""
        self._owned.close()
