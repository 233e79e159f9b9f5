"""``IMAGE -- COMMAND``: a command that the small guest runs instead of a shell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.config.console import ConsoleConfig
from vmm.config.share import ShareConfig
from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

PORTS: Final = "pyvmm."
"""How the names of the command's ports in the guest begin."""

STDIN: Final = f"{PORTS}stdin"
STDOUT: Final = f"{PORTS}stdout"
STDERR: Final = f"{PORTS}stderr"
STATUS: Final = f"{PORTS}status"

TAG: Final = "pyvmm.directory"
"""The tag of the share that is the current directory."""

HIDING: Final = ("bin", "dev", "etc", "lib", "proc", "run", "sys", "usr", "usr/lib")
"""Directories that the small guest needs itself: nothing can be mounted over them."""


class CommandConfig(NamedTuple):
    """A command for the guest.

    argv       its words
    directory  its current directory, an absolute path in the guest; shared, unless it is "/"
    terminal   value of TERM if it gets a terminal; empty: it gets pipes
    """

    argv: tuple[str, ...]
    directory: str
    terminal: str = ""


def shares(command: CommandConfig) -> tuple[ShareConfig, ...]:
    """Return the share of *command*'s directory, which exists here, too. Raises `UserError`."""
    where = command.directory.strip("/")
    if not where:
        return ()
    if where in HIDING:
        raise UserError(
            f"COMMAND: shared with the guest, the current directory {command.directory} would hide "
            "the guest's own",
            "call pyvmm in another one; / is not shared",
        )
    return (ShareConfig(Path(command.directory), TAG),)


def consoles(command: CommandConfig) -> tuple[ConsoleConfig, ...]:
    """Return the console ports that carry *command*'s input, output and status."""
    status = ConsoleConfig("pipe", name=STATUS)
    if command.terminal:
        return ConsoleConfig("stdio"), status
    return (
        ConsoleConfig("pipe", name=STDIN),
        ConsoleConfig("pipe", name=STDOUT),
        ConsoleConfig("pipe", name=STDERR),
        status,
    )


def check_command(
    command: CommandConfig, image: Path | None, ports: Sequence[ConsoleConfig]
) -> None:
    """Raise `UserError` if a machine with *image* and *ports* cannot run *command*."""
    if image is None:
        raise UserError("COMMAND: only the small guest runs it", "name its IMAGE, not --firmware")
    if not command.terminal:
        for each in ports:
            if each.kind == "stdio":
                raise UserError(
                    "--console stdio: COMMAND has standard input and output", "leave one out"
                )
