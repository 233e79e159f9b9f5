"""``--name``, ``--control`` and ``--shell``: how a running machine can be reached."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from vmm.errors import UserError

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


class ControlConfig(NamedTuple):
    """Where a machine listens for its user.

    name   its name among this user's machines; "": vm- and the ID of its process
    path   Unix socket; None: by the name, in the run directory
    shell  whether a Python prompt inside the machine's process may be asked for
    """

    name: str = ""
    path: Path | None = None
    shell: bool = False


def parse_control(name: str | None, where: str | None, *, with_shell: bool) -> ControlConfig | None:
    """Return what ``--name``, ``--control PATH|off`` and ``--shell`` ask for; None: nothing.

    Raises `UserError`.
    """
    if where == "off":
        if name is not None or with_shell:
            option = "--shell" if with_shell else "--name"
            raise UserError(f"--control off: {option} is of no use then", "leave one of them out")
        return None
    if name is not None:
        check_name(name)
    if where == "":
        raise UserError("--control: no socket is named", "name a path, or off")
    return ControlConfig(name or "", None if where is None else Path(where), with_shell)


def check_name(name: str) -> None:
    """Raise `UserError` if no machine can have this *name*."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name[:80]!r} is no machine's name",
            "use up to 40 letters, digits, dots, dashes and underscores",
        )
