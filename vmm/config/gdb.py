"""``--gdb``: where a debugger can connect."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from vmm.config.option import FLAG, parse_keys, split
from vmm.errors import UserError

SYNTAX: Final = "PORT|SOCKET[,wait]"
PORTS: Final = range(1, 1 << 16)


class GdbConfig(NamedTuple):
    """Where to listen for a gdb.

    port  TCP port on 127.0.0.1; None: *path*
    path  Unix socket; None: *port*
    wait  whether the guest stands before its first instruction until a debugger lets it go on
    """

    port: int | None = None
    path: Path | None = None
    wait: bool = False

    @property
    def option(self) -> str:
        """The option, as errors name it."""
        return f"--gdb {self.path or self.port}"


def parse_gdb(text: str) -> GdbConfig:
    """Parse `SYNTAX`: digits are a port, all else is a path. Raises `UserError`."""
    where, *parts = split(text)
    found = parse_keys(f"--gdb {text}", parts, {"wait": FLAG}, f"write --gdb {SYNTAX}")
    wait = found.get("wait", False)
    if not where:
        raise UserError("--gdb: no place to listen is named", f"write --gdb {SYNTAX}")
    if not (where.isascii() and where.isdigit()):
        return GdbConfig(path=Path(where), wait=wait)
    if len(where) > 5 or int(where) not in PORTS:
        raise UserError(
            f"--gdb {text}: ports are from {PORTS[0]} to {PORTS[-1]}",
            f"use one of these, or ./{where} for a socket of that name",
        )
    return GdbConfig(port=int(where), wait=wait)
