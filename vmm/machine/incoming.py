"""Take a guest that moves here: ``--incoming``, live migration's destination.

    listen -> offer: can this host show its CPU? -> the machine's parts, as at a start -> answer
    pages into RAM -> rest: the state in place -> ready -> go -> the guest runs -> running

Until ``go`` the guest is the source's: whatever fails here, it goes on there.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vmm import thread
from vmm.closeable import Closeable
from vmm.config.incoming import MOST_CONNECTIONS
from vmm.dirty_pages import SHIFT
from vmm.errors import HostError, UserError, VmmError, host_errors
from vmm.kvm.system import System
from vmm.machine.restore import check_cpu, configuration, put_in_place, with_run
from vmm.machine.snapshot import disks
from vmm.state import tls
from vmm.state.migration_messages import (
    FORMAT,
    VERSION,
    Answer,
    Failed,
    Go,
    Join,
    Offer,
    Ready,
    Rest,
    Running,
)
from vmm.state.reception import Reception
from vmm.state.stream import PATIENCE, Channel, prepare
from vmm.virtio.block.device import DiskFacts
from vmm.virtio.block.image_format import with_formats

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from vmm.coherence.ledger import Ledger
    from vmm.config import MachineConfig
    from vmm.config.incoming import PeerConfig
    from vmm.loop import Loop
    from vmm.machine.address_space import AddressSpace
    from vmm.machine.power_cycle import PowerCycle
    from vmm.machine.snapshot import Parts
    from vmm.state.visible_cpu import VisibleCpu

PEER: Final = "the source"


def listen(address: PeerConfig) -> socket.socket:
    """Return a socket that listens at *address*. Raises `UserError`."""
    try:
        if not address.path:
            return socket.create_server((address.host, address.port), family=_family(address.host))
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(address.path).st_mode):
                os.unlink(address.path)  # noqa: PTH108
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(address.path)
            os.chmod(address.path, 0o600)  # noqa: PTH101
            listener.listen()
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise UserError(
            f"--incoming {address}: {error.strerror or error}", "name an address of this host"
        ) from error
    return listener


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _accept(listener: socket.socket, secure: ssl.SSLContext | None) -> Channel:
    try:
        connection = listener.accept()[0]
    except TimeoutError:
        raise HostError(f"{PEER} has not made its other connections in {PATIENCE} s") from None
    if secure is not None:
        connection = tls.wrap(PEER, connection, secure)
    prepare(connection)
    return Channel(connection, PEER)


def _accept_first(
    listener: socket.socket, secure: ssl.SSLContext | None, say: Callable[[str], object]
) -> Channel:
    """Accept a source; tell by *say* of strangers, after whom it may still come."""
    while True:
        try:
            return _accept(listener, secure)
        except HostError as error:
            say(f"not {error}")


class Incoming(Closeable):
    """Wait at *listener* for a guest that moves here, and take its offer. Closes *listener*.

    *secure* is for TLS; *say* is told of who comes and cannot be trusted. Raises `HostError` and
    `UserError`, and tells the source why.
    """

    def __init__(
        self,
        listener: socket.socket,
        secure: ssl.SSLContext | None = None,
        say: Callable[[str], object] = lambda _line: None,
    ) -> None:
        self._channels: list[Channel] = []
        with listener:
            try:
                self._channels.append(_accept_first(listener, secure, say))
                self._offer = self._channels[0].receive(Offer)
                self._check_offer()
                self._cpu = self._check_host()
                listener.settimeout(PATIENCE)
                for index in range(1, self._offer.connections):
                    self._channels.append(_accept(listener, secure))
                    self._check_join(index)
            except BaseException as error:
                self.refuse(error)
                self.close()
                raise

    def _check_join(self, index: int) -> None:
        if self._channels[index].receive(Join) != Join(self._offer.token, index):
            raise UserError(f"{PEER}: join: another migration's connection")

    def _check_offer(self) -> None:
        offer = self._offer
        offer.cpu.check(f"{PEER}: offer.cpu")
        if (offer.format, offer.version) != (FORMAT, VERSION):
            raise UserError(
                f"{PEER}: offer.version: {offer.format!r} {offer.version}; this pyvmm reads "
                f"{FORMAT!r} {VERSION}",
                "use the same version of pyvmm on both hosts",
            )
        if offer.memory.page != 1 << SHIFT:
            raise HostError(
                f"{PEER} has pages of {offer.memory.page} bytes, and this host {1 << SHIFT}",
                "move between hosts whose kernels have the same page size",
            )
        if not 0 < offer.connections <= MOST_CONNECTIONS:
            raise UserError(f"{PEER}: offer.connections: {offer.connections}")

    def _check_host(self) -> VisibleCpu:
        """Return what this host shows of its CPU. Raises `HostError`, FWB first."""
        with System.open() as system:
            return check_cpu(
                PEER,
                system,
                self._offer.cpu,
                "move it to a host like the source: pyvmm compat diff compares two",
            )

    @property
    def cpu(self) -> VisibleCpu:
        """What the guest has seen of the CPU."""
        return self._offer.cpu

    def config(self, asked: MachineConfig) -> MachineConfig:
        """Return the guest's machine, with what belongs to this run of *asked*.

        Raises `UserError`.
        """
        offer = self._offer
        try:
            found = configuration(f"{PEER}: offer", offer.machine, offer.memory.size)
            return with_formats(with_run(found, asked))
        except VmmError as error:
            self.refuse(error)
            raise

    def apply(
        self, cycle: PowerCycle, parts: Parts, space: AddressSpace, ledger: Ledger, loop: Loop
    ) -> bool:
        """Take memory and state into *cycle*, whose parts are connected, and *parts*.

        Return False if the loop was stopped meanwhile. Raises `HostError` and `UserError`.
        """
        first = self._channels[0]
        first.send(Answer(self._cpu, [entry.as_json() for entry in ledger]))
        reception = Reception(space.ram_region, self._channels)
        rest = self._wait(reception, loop)
        if rest is None:
            return False
        put_in_place(PEER, rest.state, cycle, parts)
        try:
            parts.vmgenid.restore(rest.state.vmgenid)
        except ValueError as error:
            raise UserError(f"{PEER}: rest.state.vmgenid: {error}") from error
        found = disks(parts.virtio)
        if len(found) != len(rest.disks):
            raise UserError(
                f"{PEER}: rest.disks: {len(rest.disks)}, and the machine has {len(found)}"
            )
        with host_errors("--incoming"):
            for disk, facts in zip(found, rest.disks, strict=True):
                disk.check(DiskFacts(facts.size, facts.modified))
        first.send(Ready(reception.maintain(ledger)))
        first.receive(Go)
        if parts.virtio is not None:
            parts.virtio.resume()
        return True

    def _wait(self, reception: Reception, loop: Loop) -> Rest | None:
        """Run *loop* until all pages and the rest are here; None: it was stopped."""
        result: list[Rest | BaseException] = []

        def receive() -> None:
            try:
                reception.run()
                result.append(self._channels[0].receive(Rest))
            except BaseException as error:  # noqa: BLE001  (it is raised in the loop's thread)
                result.append(error)
            loop.call_soon_threadsafe(lambda: None)

        worker = thread.start("incoming", receive)
        loop.run(until=lambda: bool(result))
        if not result:
            for channel in self._channels:
                channel.interrupt()
            worker.join()
            return None
        if isinstance(result[0], BaseException):
            raise result[0]
        return result[0]

    def started(self) -> None:
        """Tell the source that the guest runs. The source waits for it, and nothing else."""
        with suppress(VmmError):
            self._channels[0].send(Running(time.time()))

    def refuse(self, error: BaseException | None) -> None:
        """Tell the source that it has to keep the guest, because of *error*."""
        if self._channels and isinstance(error, VmmError):
            with suppress(VmmError):
                self._channels[0].send(Failed(error.message, error.hint))

    def close(self) -> None:
        """Close the connections. Idempotent."""
        for channel in self._channels:
            channel.interrupt()
            channel.close()
