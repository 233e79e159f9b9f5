"""``pyvmm shell``: a Python prompt inside a running machine."""

from __future__ import annotations

import sys

import click

from vmm.cli.place import host_option, is_native, run_there
from vmm.control.attach import converse
from vmm.control.client import Client
from vmm.control.shell import PROTOCOL


@click.command
@click.argument("name")
@host_option
def shell(name: str, host: str) -> None:
    """Open a Python prompt in the process of the machine NAME, which has --shell; C-d leaves."""
    if not is_native(host, any_machine=True):
        sys.exit(run_there(host, start=False))
    with Client.of(name) as client:
        converse(*client.switch("/shell", PROTOCOL))
    click.echo()
