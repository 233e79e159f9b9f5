"""``pyvmm console``: attach to a machine's console, and leave it again."""

from __future__ import annotations

from typing import Final

import click

from vmm.cli.machine_client import client_of
from vmm.cli.place import host_option
from vmm.control.attach import attach
from vmm.terminal.escape import parse_prefix

PROTOCOL: Final = "pyvmm-console"


@click.command
@click.argument("name")
@click.option(
    "--port",
    type=click.Choice(["serial", "virtio"]),
    default="serial",
    show_default=True,
    help="Which console: the serial port, or hvc0 of --console stdio.",
)
@click.option(
    "--leave-by",
    default="C-a",
    show_default=True,
    metavar="C-<key>|none",
    help="Prefix of the key d, which leaves the console.",
)
@host_option
def console(name: str, port: str, leave_by: str, host: str) -> None:
    """Attach to the console of the machine NAME; C-a d leaves it, and the machine goes on."""
    prefix = parse_prefix(leave_by)
    with client_of(name, host) as client:
        peer, early = client.switch(f"/consoles/{port}", PROTOCOL)
        left = attach(peer, early, prefix)
    click.echo(f"pyvmm: {'left' if left else 'the end of'} {name}", err=True)
