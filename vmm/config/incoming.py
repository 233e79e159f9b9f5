"""``--incoming``: where a machine waits for a guest that moves here."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from vmm.config.option import Key, parse_keys, split
from vmm.errors import UserError

MOST_CONNECTIONS: Final = 4
"""Connections of a migration: as many descriptors as a request on the control socket may bring."""

SYNTAX: Final = "unix:PATH or tcp:HOST:PORT,tls=DIR|off"


class PeerConfig(NamedTuple):
    """The address of a destination: *path* of a unix socket, or *host* and *port* of TCP.

    tls  directory with keys and certificates (`vmm.state.tls`); None: bytes go as they are
    """

    path: str = ""
    host: str = ""
    port: int = 0
    tls: Path | None = None

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port},tls={self.tls or 'off'}"


def parse_incoming(text: str) -> PeerConfig:
    """Parse ``unix:PATH`` or ``tcp:HOST:PORT,tls=DIR|off``. Raises `UserError`."""
    return parse_peer("--incoming", text)


def parse_peer(option: str, text: str) -> PeerConfig:
    """Parse the address of a destination that *option* has. Raises `UserError`.

    Over TCP ``tls`` has to be there: who sends a guest names the files that are opened for it.
    """
    address, *parts = split(text)
    kind, _, rest = address.partition(":")
    if kind == "unix" and rest and not parts:
        return PeerConfig(path=rest)
    host, _, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if kind != "tcp" or not host or not port.isascii() or not port.isdigit():
        raise UserError(f"{option}: {text!r} is no address", f"write {SYNTAX}")
    if not 0 < int(port) < 1 << 16:
        raise UserError(f"{option}: {text!r} has no port of TCP", f"write {SYNTAX}")
    found = parse_keys(f"{option} {text}", parts, {"tls": Key(_directory)}, f"write {SYNTAX}")
    if "tls" not in found:
        raise UserError(
            f"{option} {text}: whoever reaches that port could read the guest, or name the files "
            "that a machine here opens",
            "add ,tls=DIR with keys and certificates, or ,tls=off where the network is trusted",
        )
    return PeerConfig(host=host, port=int(port), tls=found["tls"])


def _directory(text: str) -> Path | None:
    if not text:
        raise ValueError("tls is a directory, or off")
    return None if text == "off" else Path(text)
