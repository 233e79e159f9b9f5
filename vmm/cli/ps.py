"""``pyvmm ps``: the machines that run, here and in lab hosts."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import click

from vmm.control.client import Client
from vmm.control.names import names
from vmm.errors import VmmError

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADINGS: Final = ("NAME", "HOST", "PID", "STATE", "UPTIME", "CPUS", "MEMORY", "IMAGE")


@click.command
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--here", is_flag=True, help="Leave lab hosts out.")
def ps(*, as_json: bool, here: bool) -> None:
    """List the machines that run: this user's on this machine, and those in its lab hosts."""
    found = [{"host": "native", **status} for status in _running()]
    if not here:
        found += _in_lab_hosts()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = [HEADINGS, *(_row(each) for each in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def _running() -> Iterator[dict[str, Any]]:
    """Yield the status of each machine on this machine; one that ends meanwhile is none."""
    for name in names():
        with suppress(VmmError), Client.of(name) as client:
            yield client.ask("GET", "/")


def _in_lab_hosts() -> list[dict[str, Any]]:
    """Return the status of machines in this user's lab hosts, which are asked one by one."""
    from vmm.lab.host import state
    from vmm.lab.host.emulated_host import Host

    found: list[dict[str, Any]] = []
    for directory, record in state.hosts():
        if record.up:
            with suppress(VmmError, OSError):
                done = Host(directory, record).run(["pyvmm", "ps", "--json", "--here"])
                there = json.loads(done.stdout) if done.status == 0 else ()
                found += [{**each, "host": f"lab:{record.profile}"} for each in there]
    return found


def _row(status: dict[str, Any]) -> tuple[str, ...]:
    seconds = int(status["uptime"])
    return (
        status["name"],
        status["host"],
        str(status["pid"]),
        status["state"],
        f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}",
        str(status["cpus"]),
        f"{status['memory'] >> 20}M",
        os.path.basename(status["image"]),  # noqa: PTH119  (text)
    )
