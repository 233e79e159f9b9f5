"""``--console``: a port of the virtio console, and its far end on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from vmm.config.option import Key, parse_keys, split
from vmm.errors import UserError

SYNTAX: Final = "stdio|pty|file=PATH|unix=PATH[,name=NAME]"

NAME_BYTES: Final = 64
"""Longest name of a port, in bytes: udev makes a file name of it."""

USAGE: Final = f"name=NAME takes up to {NAME_BYTES} ASCII characters without blanks and slashes"

WITH_PATH: Final = ("file", "unix")
ALONE: Final = ("stdio", "pty")


class ConsoleConfig(NamedTuple):
    """One port.

    kind  stdio, pty, file or unix; of a command's ports, pipe: the far end is in this process
    path  of the file, or of the socket to listen on
    name  its name in the guest's /dev/virtio-ports; empty: the port is a console (hvc0, hvc1...)
    """

    kind: str
    path: Path | None = None
    name: str = ""


def parse_console(text: str) -> ConsoleConfig:
    """Parse `SYNTAX`. Raises `UserError`."""
    end, *parts = split(text)
    kind, equals, path = end.partition("=")
    if not (path if kind in WITH_PATH else kind in ALONE and not equals):
        raise UserError(f"--console: {text!r} names no end", f"write {SYNTAX}")
    found = parse_keys(f"--console {text}", parts, {"name": Key(_name)}, USAGE)
    return ConsoleConfig(kind, Path(path) if path else None, found.get("name", ""))


def _name(text: str) -> str:
    plain = text.isascii() and text.isprintable() and "/" not in text and " " not in text
    if not plain or not 0 < len(text) <= NAME_BYTES:
        raise ValueError
    return text


def check_consoles(consoles: tuple[ConsoleConfig, ...]) -> None:
    """Raise `UserError` if *consoles* share standard input, a name or a path."""
    if sum(console.kind == "stdio" for console in consoles) > 1:
        raise UserError("--console stdio: given more than once", "there is one standard input")
    for what in ("name", "path"):
        values = [value for each in consoles if (value := getattr(each, what))]
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise UserError(f"--console: two ports with {what} {twice}", "use another for one")
