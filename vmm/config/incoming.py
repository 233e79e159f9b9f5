"""``--incoming``: where a machine waits for a guest that moves here."""

from __future__ import annotations

from typing import NamedTuple

from vmm.errors import UserError

SYNTAX = "unix:PATH or tcp:HOST:PORT"


class PeerConfig(NamedTuple):
    """The address of a destination: *path* of a unix socket, or *host* and *port* of TCP."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"tcp:{self.host}:{self.port}"


def parse_incoming(text: str) -> PeerConfig:
    """Parse ``unix:PATH`` or ``tcp:HOST:PORT``. Raises `UserError`."""
    return parse_peer("--incoming", text)


def parse_peer(option: str, text: str) -> PeerConfig:
    """Parse the address of a destination that *option* has. Raises `UserError`."""
    kind, _, rest = text.partition(":")
    host, _, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if kind == "unix" and rest:
        return PeerConfig(path=rest)
    if kind == "tcp" and host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16:
        return PeerConfig(host=host, port=int(port))
    raise UserError(f"{option}: {text!r} is no address", f"write {SYNTAX}")
