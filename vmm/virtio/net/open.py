"""Open what ``--net`` asks for: a network device, and a TAP interface or passt behind it."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from vmm.config.net import NetKind
from vmm.errors import HostError
from vmm.virtio.net.device import Net
from vmm.virtio.net.registers import GUEST_OFFLOADS, HOST_OFFLOADS, Address
from vmm.virtio.net.threads import ThreadBackend
from vmm.virtio.net.vhost_net import KernelNetBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.config.net import NetConfig
    from vmm.events import Events
    from vmm.virtio.device import VirtioDevice
    from vmm.virtio.net.tap import Tap
    from vmm.virtio.queue import MemoryMap
    from vmm.virtio.vhost.backend import VhostBackend

PASST_MTU: Final = 65520
"""Bytes. passt tells guests this MTU by DHCP and NDP; the configuration tells guests that use
neither. passt ends each connection itself, so nothing on the way has to carry such packets."""

PREFIX: Final = b"\x52\x54\x00"
"""Start of made-up addresses: locally administered, and the one that VMMs commonly use."""


def open_net(
    name: str,
    config: NetConfig,
    memory: MemoryMap,
    events: Events,
    say: Callable[[str], object] = lambda _line: None,
) -> VirtioDevice:
    """Return the network device that *config* asks for.

    *say* tells the user the name of a TAP interface that was made. Raises `HostError` and
    `UserError`.
    """
    mac = config.mac or PREFIX + os.urandom(3)
    usual = PASST_MTU if config.kind is NetKind.USER else 0
    address = Address(mac, config.mtu or usual, config.queues)
    if config.kind is NetKind.TAP:
        return _open_tap(name, config, address, memory, events, say)
    return _open_user(name, config, address, memory, events)


def _open_tap(  # noqa: PLR0913, PLR0917  (as open_net, and more)
    name: str,
    config: NetConfig,
    address: Address,
    memory: MemoryMap,
    events: Events,
    say: Callable[[str], object],
) -> Net:
    from vmm.virtio.net.tap import Tap

    with ExitStack() as undo:
        tap = undo.enter_context(Tap(config.name, config.queues, config.option))
        tap.configure(mtu=config.mtu, bridge=config.bridge, address=config.address)
        backend = _tap_backend(config, tap, events)
        undo.callback(backend.close)
        device = Net(name, memory, events, address, backend=backend, tap=tap)
        undo.pop_all()
    vhost = isinstance(backend, KernelNetBackend)
    events.emit("net-up", device=name, tap=tap.name, vhost=vhost, mac=address.mac.hex(":"))
    if not config.name:
        say(f"{config.option}: the host's side is {tap.name}")
    return device


def _tap_backend(config: NetConfig, tap: Tap, events: Events) -> VhostBackend:
    """Return vhost-net or, if it is missing or not wanted, threads of ours.

    Raises `HostError` if the user insists on vhost-net and it is missing.
    """
    if config.vhost is not False:
        try:
            return KernelNetBackend(tap, config.option)
        except HostError as error:
            if config.vhost:
                raise
            events.emit("vhost-unavailable", error=str(error))
    files = [queue.fileno() for queue in tap.queues]
    return ThreadBackend(files, offers=GUEST_OFFLOADS | HOST_OFFLOADS)


def _open_user(
    name: str, config: NetConfig, address: Address, memory: MemoryMap, events: Events
) -> VirtioDevice:
    from vmm.virtio.net.passt import Passt, RelayedPasst, StreamBackend
    from vmm.virtio.net.vhost_user import VhostUserNet
    from vmm.virtio.vhost.user import DaemonRefusedError, VhostUser

    mac = address.mac.hex(":")
    if config.relay is None and all(region.fd >= 0 for region in memory.memory):
        # A passt that does not know vhost-user refuses the option and ends.
        with suppress(DaemonRefusedError), ExitStack() as undo:
            server = VhostUser(Passt(config, events, vhost_user=True), in_order=True)
            undo.callback(server.close)
            device = VhostUserNet(name, memory, events, address, backend=server)
            undo.pop_all()
            events.emit("net-up", device=name, passt="vhost-user", mac=mac)
            return device
    with ExitStack() as undo:
        passt = RelayedPasst(config.option, config.relay) if config.relay else None
        backend = StreamBackend(passt or Passt(config, events))
        undo.callback(backend.close)
        net = Net(name, memory, events, address, backend=backend)
        undo.pop_all()
    events.emit("net-up", device=name, passt="stream", mac=mac)
    return net
