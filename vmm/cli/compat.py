"""``pyvmm compat``: describe hosts, compare them, find a CPU that they all can show."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from vmm.cli.place import host_option, is_native, run_there
from vmm.errors import HostError, UserError
from vmm.state import baseline as baselines
from vmm.state.comparison import FWB, check_override
from vmm.state.host_description import HostDescription
from vmm.state.verdict import moves, worst

_HOSTS = click.argument("hosts", nargs=-1, required=True, type=click.Path(path_type=Path))


@click.group()
def compat() -> None:
    """Tell between which hosts a guest can move: describe them, compare, find a baseline."""


@compat.command()
@host_option
def save(*, host: str) -> None:
    """Write a description of the host to standard output: JSON, a line for each register.

    A device that has a VFIO driver and is not in use is opened, which resets it.
    """
    if not is_native(host):
        sys.exit(run_there(host))
    click.echo(HostDescription.collect().text(), nl=False)


@compat.command()
@_HOSTS
@click.option("--json", "as_json", is_flag=True, help="One JSON array, for programs.")
@click.option(
    "--change-id-register",
    "allowed",
    multiple=True,
    metavar="REGISTER[.FIELD]",
    help="Do not count this difference, though a guest sees an ID register change.",
)
def diff(*, hosts: tuple[Path, ...], as_json: bool, allowed: tuple[str, ...]) -> None:
    """Tell of each move among HOSTS, files of `compat save`, whether a guest can make it.

    Exit status: 0 each can be made; 10 with a baseline; 11 not all can be made.
    """
    if len(hosts) < 2:
        raise UserError("compat diff needs two hosts", "name two files of pyvmm compat save")
    check_override(allowed)
    found = moves([(str(path), HostDescription.read(path)) for path in hosts], allowed)
    if as_json:
        click.echo(json.dumps([one.as_json() for one in found], indent=1))
    else:
        for one in found:
            click.echo("\n".join(one.lines()))
    sys.exit(worst([one.verdict for one in found]).status)


@compat.command()
@_HOSTS
def baseline(*, hosts: tuple[Path, ...]) -> None:
    """Write a CPU that all HOSTS can show to standard output, for `run --cpu-baseline`."""
    described = [HostDescription.read(path) for path in hosts]
    cpu = baselines.common(described)
    for index, reason in baselines.obstacles(described, cpu):
        what = f"{hosts[0]} and {hosts[index]}" if index else f"{hosts[0]}"
        hint = "no baseline can hide it" if reason.subject == FWB else "leave one of the hosts out"
        raise HostError(f"there is no baseline for {what}: {reason}", hint)
    click.echo(baselines.text(cpu), nl=False)
