"""``pyvmm shell``: a Python prompt inside a running machine."""

from __future__ import annotations

import click

from vmm.cli.machine_client import client_of
from vmm.cli.place import host_option
from vmm.control.attach import converse
from vmm.control.shell import PROTOCOL


@click.command
@click.argument("name")
@host_option
def shell(name: str, host: str) -> None:
    """Open a Python prompt in the process of the machine NAME, which has --shell; C-d leaves."""
    with client_of(name, host) as client:
        converse(*client.switch("/shell", PROTOCOL))
    click.echo()
