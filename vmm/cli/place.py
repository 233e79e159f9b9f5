"""--host: whether a command runs on this machine, or in an emulated arm64 host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from vmm.errors import HostError, UserError
from vmm.kvm.system import DEVICE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm.lab.host.relay import Joint

OPTION = "--host"

host_option: Callable[[click.decorators.FC], click.decorators.FC] = click.option(
    OPTION,
    default="auto",
    metavar="auto|native|lab[:PROFILE]",
    help="Where: on this machine, or in an emulated arm64 host.  [default: auto, which is "
    "native on arm64 with /dev/kvm, else lab]",
)


UAPI: Final = click.Choice(["auto", "mainline", "rfc", "vendor"])
"""The type of ``--uapi``, which several commands have."""


def is_native(host: str, *, any_machine: bool = False) -> bool:
    """Return whether *host* is this machine.

    Raises `UserError`: it is no kind of host; `HostError`: it is this machine, which is not arm64,
    unless *any_machine* will do.
    """
    if host == "auto":
        return os.uname().machine == "aarch64" and os.path.exists(DEVICE)  # noqa: PTH110
    if host == "native":
        if not any_machine and os.uname().machine != "aarch64":
            raise HostError(f"{OPTION} native: this machine is not arm64", f"use {OPTION} lab")
        return True
    if host.partition(":")[0] == "lab":
        return False
    raise UserError(f"{OPTION} {host}: no such host", "use auto, native, lab or lab:PROFILE")


def profile_of(host: str) -> str:
    """Return the name of the profile that *host* asks for. Raises `UserError`: there is no such."""
    from vmm.lab.host import profiles

    return profiles.profile(host.partition(":")[2] or profiles.DEFAULT).name


def run_there(  # noqa: PLR0913  (what, where and with what)
    host: str,
    command: Sequence[str] | None = None,
    packages: Sequence[str] = (),
    joints: Sequence[Joint] = (),
    *,
    writable: Sequence[Path] = (),
    start: bool = True,
) -> int:
    """Run a command of pyvmm in the lab host that *host* names; return its exit status.

    *command* is its words, without the program; by default those of the command that runs.
    *packages* are Debian packages that the lab host gets first. *joints* are streams between this
    machine and the lab host. *writable* are files and directories that the lab host can write,
    besides those that the command's own options name. Without *start*, the host has to be up.
    """
    from vmm.lab.host import client

    if command is None:
        context = click.get_current_context()
        command, writable = this_command(context), [*writable, *named(context)]
    return client.run_in_lab(
        profile_of(host),
        ["pyvmm", *command, OPTION, "native"],
        packages=packages,
        joints=joints,
        writable=writable,
        start=start,
    )


def visible(path: Path) -> Path:
    """Return the name of the file *path* in a lab host; see `vmm.lab.host.session.visible`."""
    from vmm.lab.host import session  # not before it is needed: a native run has no lab

    return session.visible(path)


def this_command(context: click.Context) -> list[str]:
    """Return the words of the command in *context*, without ``--host``, with its paths `visible`.

    Built from the values that click has parsed. Options at their default are left out.
    """
    words: list[str] = []
    while context.parent is not None:
        words = [str(context.info_name), *_options(context), *words]
        context = context.parent
    return words


def named(context: click.Context) -> list[Path]:
    """Return the paths that the options and arguments of the command in *context* name."""
    return [value for _, value in _given(context) if isinstance(value, Path)]


def _given(context: click.Context) -> Iterator[tuple[click.Parameter, object]]:
    """Yield each value that was typed, but that of ``--host``, with its option or argument."""
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if source is not click.core.ParameterSource.COMMANDLINE or OPTION in parameter.opts:
            continue
        given = context.params[name]
        for value in given if isinstance(given, tuple) else (given,):
            yield parameter, value


def _options(context: click.Context) -> list[str]:
    options: list[str] = []
    arguments: list[str] = []
    for parameter, value in _given(context):
        text = str(visible(value) if isinstance(value, Path) else value)
        if isinstance(parameter, click.Argument):
            arguments.append(text)
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            options.append(parameter.opts[0])
        else:
            options += [parameter.opts[0], text]
    return [*options, *arguments]
