"""TAP interfaces of the host (drivers/net/tun.c): made, or found, with a queue for each pair.

guest --> queue file --> interface --> bridge, or an address of the host
      <--            <--
"""

from __future__ import annotations

import errno
from contextlib import ExitStack, contextmanager
from enum import IntEnum, unique
from typing import TYPE_CHECKING, ClassVar, Final

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.errors import HostError, KernelError, UserError
from vmm.fd import DeviceFile
from vmm.virtio.net.netlink import Netlink, NetlinkError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Interface, IPv6Interface

PATH: Final = "/dev/net/tun"
NAME_BYTES: Final[int] = lib.IFNAMSIZ - 1
TEMPLATE: Final = "tap%d"
"""The kernel puts in the first number that is free."""


@unique
class TunIoctl(IntEnum):
    """On /dev/net/tun."""

    TUNSETIFF = lib.TUNSETIFF
    TUNSETQUEUE = lib.TUNSETQUEUE
    TUNSETOFFLOAD = lib.TUNSETOFFLOAD
    TUNSETVNETHDRSZ = lib.TUNSETVNETHDRSZ


class TapQueue(DeviceFile):
    """One queue of a TAP interface: packets with a virtio header before each."""

    module = "tun"
    causes: ClassVar = {
        ("TUNSETIFF", errno.EPERM): (
            "only root makes interfaces; make one that is yours (ip tuntap add NAME mode tap user "
            "$USER, then ip link set NAME up) and name it, or use --net user"
        ),
        ("TUNSETIFF", errno.EBUSY): "another program has this interface; name another",
        ("TUNSETIFF", errno.EINVAL): (
            "there is such an interface, but it is no TAP, or not one for several queues"
        ),
        ("TUNSETIFF", errno.E2BIG): "the interface has no more queues than that",
        ("TUNSETOFFLOAD", errno.EINVAL): "the kernel's TAP does not know one of these offloads",
    }

    def interface(self, request: TunIoctl, name: str, flags: int) -> str:
        """Issue one of the requests that are about an interface; return its name."""
        text = ffi.new("char[]", lib.IFNAMSIZ)
        text[0 : len(name)] = name.encode()
        result = lib.pyvmm_tun_interface(self.fileno(), request, text, flags)
        self.checked(result, request, {"name": name, "flags": flags})
        return str(ffi.string(text).decode())


class Tap(Closeable):
    """Owns the queues of interface *name*, made if it is not there; *option* is for errors.

    An interface that was not there before goes when it is closed. Only the first queue is attached
    at first: see `set_pairs`. Raises `HostError` and `UserError`.
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
        """Raise if another program has it: the kernel lets several have queues of one TAP."""
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
            # One that was made for several queues wants to hear that from each.
            name = queue.interface(TunIoctl.TUNSETIFF, name, flags | lib.IFF_MULTI_QUEUE)
        size = lib.PYVMM_NET_HEADER
        queue.ioctl_value(TunIoctl.TUNSETVNETHDRSZ, "int", size, size=size)
        self.queues.append(queue)
        return name

    def set_pairs(self, pairs: int) -> None:
        """Have packets come in through the first *pairs* queues only. Raises `KernelError`."""
        for index in range(min(pairs, self._pairs), max(pairs, self._pairs)):
            flags = lib.IFF_ATTACH_QUEUE if index < pairs else lib.IFF_DETACH_QUEUE
            self.queues[index].interface(TunIoctl.TUNSETQUEUE, "", flags)
        self._pairs = pairs

    def set_offload(self, flags: int) -> None:
        """Say which packets may come in unfinished: TUN_F_*. Raises `KernelError`."""
        self.queues[0].ioctl(TunIoctl.TUNSETOFFLOAD, flags, flags=flags)

    def configure(
        self, *, mtu: int | None, bridge: str | None, address: IPv4Interface | IPv6Interface | None
    ) -> None:
        """Bring the interface up as asked for; nothing is done that was done before.

        Raises `HostError`, and `UserError` for a bridge that is none.
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
        """Open it, and name the option in what it raises."""
        try:
            with Netlink() as netlink:
                yield netlink
        except NetlinkError as error:
            call = f"{self._option}: {error.call}"
            raise KernelError(call, error.errno, error.hint) from error
        except OSError as error:
            raise HostError(f"{self._option}: netlink: {error.strerror}") from error

    def close(self) -> None:
        """Close the queues. Nobody else may have them. Idempotent."""
        self._owned.close()
