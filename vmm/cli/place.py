"""--host: whether a command runs on this machine, or in an emulated arm64 host."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from vmm.errors import UserError
from vmm.kvm.system import DEVICE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

OPTION = "--host"

host_option: Callable[[click.decorators.FC], click.decorators.FC] = click.option(
    OPTION,
    default="auto",
    metavar="auto|native|lab[:PROFILE]",
    help="Where: on this machine, or in an emulated arm64 host.  [default: auto, which is "
    "native on arm64 with /dev/kvm, else lab]",
)


def is_native(host: str) -> bool:
    """Tell whether *host* means this machine. Raises `UserError` for a host that is none."""
    if host == "auto":
        return os.uname().machine == "aarch64" and os.path.exists(DEVICE)  # noqa: PTH110
    if host == "native":
        return True
    if host.partition(":")[0] == "lab":
        return False
    raise UserError(f"{OPTION} {host}: no such host", "use auto, native, lab or lab:PROFILE")


def run_there(host: str, files: Sequence[Path] = (), packages: Sequence[str] = ()) -> int:
    """Run this very command line in the lab host that *host* names; return its exit status.

    *files* are those it names: they get the names by which they are visible there. *packages* are
    Debian's, with programs that it starts.
    """
    from vmm.lab.host import client, profiles

    profile = host.partition(":")[2] or profiles.DEFAULT
    arguments = [_visible(argument, files) for argument in _without_host(sys.argv[1:])]
    command, rest = arguments[0], arguments[1:]
    return client.run_in_lab(
        profiles.profile(profile).name,
        ["pyvmm", command, OPTION, "native", *rest],
        packages=packages,
    )


def _visible(argument: str, files: Sequence[Path]) -> str:
    """Return *argument*, be it ``FILE`` or ``--option=FILE``, as the lab host has that file.

    Options of the file's own may follow, and what it is for go before: ``FILE,ro``, ``DIR:TAG``,
    ``file=FILE``, ``BDF,rom=FILE``.
    """
    from vmm.lab.host.session import inside

    for file in files:
        option, own = _around(argument, str(file))
        if option is None:
            continue
        # Links lead astray there; else the name that the user gave stays, for messages.
        real = os.path.realpath(file)
        direct = real == os.path.abspath(file) and inside(real) == real  # noqa: PTH100
        return argument if direct else option + inside(real) + own
    return argument


def _around(argument: str, file: str) -> tuple[str | None, str]:
    """Return what is before *file* in *argument*, and what after; None if that is not it."""
    at = argument.find(file)
    while at >= 0:
        option, own = argument[:at], argument[at + len(file) :]
        names = option in ("", "file=", "unix=") or option.startswith("-")
        names = names or option.endswith(",rom=")
        if names and own[:1] in ("", ",", ":"):
            return option, own
        at = argument.find(file, at + 1)
    return None, ""


def _without_host(arguments: list[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for index, argument in enumerate(arguments):
        if argument == "--":
            return kept + arguments[index:]
        if skip:
            skip = False
        elif argument == OPTION:
            skip = True
        elif not argument.startswith(OPTION + "="):
            kept.append(argument)
    return kept
