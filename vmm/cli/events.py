"""``pyvmm events``: what happens to a running machine, as JSON lines."""

from __future__ import annotations

import sys

import click

from vmm.cli.place import host_option, is_native, run_there
from vmm.control.client import Client


@click.command
@click.argument("name")
@host_option
def events(name: str, host: str) -> None:
    """Print the events of the machine NAME from now on, as JSON lines, until it ends."""
    if not is_native(host, any_machine=True):
        sys.exit(run_there(host, start=False))
    with Client.of(name) as client:
        for data in client.feed("/events"):
            click.echo(data, nl=False)
