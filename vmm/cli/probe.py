"""``pyvmm probe``: what this host's KVM can do."""

from __future__ import annotations

import json
import sys

import click

from vmm.cli.place import host_option, is_native, run_there
from vmm.coherence.host_report import HostReport


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--all", "everything", is_flag=True, help="Also list capabilities that are 0.")
@host_option
def probe(*, as_json: bool, everything: bool, host: str) -> None:
    """Print what this host's KVM can do: every capability, and facts about the host."""
    if not is_native(host):
        sys.exit(run_there(host))
    found = HostReport.run()
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=1))
    else:
        click.echo("\n".join(found.lines(everything=everything)))
