"""``pyvmm migrate``: move the guest of a running machine to another host.

The client connects to the destination, as it may resolve names and open paths; a sealed machine may
not. It passes the connections to the machine over the control socket.
"""

from __future__ import annotations

import json
import socket
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import click

from vmm.cli.place import host_option, is_native, run_there
from vmm.config.incoming import MOST_CONNECTIONS, parse_peer
from vmm.control.client import Client
from vmm.errors import HostError, UserError
from vmm.state import tls
from vmm.state.stream import prepare

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from vmm.config.incoming import PeerConfig

MIB: Final = 1 << 20
CONNECT_PATIENCE: Final = 10.0
WHAT: Final = "migrate"


def connect(
    address: PeerConfig, secure: ssl.SSLContext | None, *, first: bool = True
) -> socket.socket:
    """Connect to the destination at *address*, with *secure* in TLS.

    It takes other connections than the *first* once that has brought the offer.

    Raises `UserError`: nothing waits there, and `HostError`: it is not to be trusted.
    """
    try:
        if not address.path:
            found = socket.create_connection((address.host, address.port), CONNECT_PATIENCE)
            if secure is None:
                return found
            return tls.wrap(WHAT, found, secure, address.host, later=not first)
        found = socket.socket(socket.AF_UNIX)
        try:
            found.connect(address.path)
        except BaseException:
            found.close()
            raise
    except OSError as error:
        raise UserError(
            f"migrate: {address}: {error.strerror or error}",
            f"start the destination first: pyvmm run --incoming {address}",
        ) from error
    return found


def events(chunks: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the events in the *chunks* of a feed of JSON lines."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from map(json.loads, lines)


def follow(found: Iterator[dict[str, Any]]) -> None:
    """Tell of each round until the move has ended. Raises `HostError` if the guest stays."""
    for event in found:
        match event["event"]:
            case "migration-round":
                click.echo(
                    f"round {event['number']}: {event['sent'] / MIB:.1f} MiB at "
                    f"{event['rate'] / MIB:.1f} MiB/s, {event['remaining'] / MIB:.1f} MiB remain, "
                    f"{event['expected_downtime']:.2f} s",
                    err=True,
                )
            case "moved":
                click.echo(
                    f"moved in {event['seconds']:.1f} s; the guest stood still for "
                    f"{event['downtime']:.2f} s",
                    err=True,
                )
                return
            case "migration-failed":
                raise HostError(f"the guest goes on here: {event['error']}")
            case "migration-unknown":
                raise HostError(
                    f"{event['error']}: the destination may run the guest, so it stays paused here",
                    "look there first; pyvmm resume lets it go on here",
                )
    raise HostError("the machine has ended before it has moved", "its own messages may say why")


@click.command
@click.argument("name")
@click.argument("address", metavar="unix:PATH|tcp:HOST:PORT,tls=DIR|off")
@click.option(
    "--downtime",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    metavar="MS",
    help="Let the guest stand still when its last pages take less than MS milliseconds.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, MOST_CONNECTIONS),
    default=1,
    show_default=True,
    metavar="N",
    help="Move pages over N connections.",
)
@host_option
def migrate(name: str, address: str, downtime: int, connections: int, host: str) -> None:
    """Move the guest of the machine NAME to a pyvmm run --incoming, while it runs."""
    peer = parse_peer(WHAT, address)
    if not is_native(host, any_machine=True):
        sys.exit(run_there(host, start=False))
    with ExitStack() as owned:
        asking = owned.enter_context(Client.of(name))
        hearing = owned.enter_context(Client.of(name))
        secure = None if peer.tls is None else tls.context(WHAT, peer.tls, server=False)
        sockets = [
            owned.enter_context(connect(peer, secure, first=number == 0))
            for number in range(connections)
        ]
        for each in sockets:
            prepare(each)
        feed = events(hearing.feed("/events"))
        asking.ask(
            "POST", "/migrate", {"downtime": str(downtime)}, [each.fileno() for each in sockets]
        )
        for each in sockets:
            each.close()  # the machine has its own
        follow(feed)
