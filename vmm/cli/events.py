"""``pyvmm events``: what happens to a running machine, as JSON lines."""

from __future__ import annotations

import click

from vmm.cli.machine_client import client_of
from vmm.cli.place import host_option


@click.command
@click.argument("name")
@host_option
def events(name: str, host: str) -> None:
    """Print the events of the machine NAME from now on, as JSON lines, until it ends."""
    with client_of(name, host) as client:
        for data in client.feed("/events"):
            click.echo(data, nl=False)
