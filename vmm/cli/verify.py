"""``pyvmm verify``: prove what stage 2 gives a region of a VFIO device."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack

import click

from vmm.cli.place import UAPI, host_option, is_native, run_there
from vmm.coherence.capability import HostCapability
from vmm.coherence.policy import with_uapi
from vmm.coherence.scratch import Features
from vmm.config.bar import parse_bar
from vmm.kvm.system import System
from vmm.passthrough.region_memory import open_all


@click.command()
@click.option(
    "--bar",
    "bars",
    multiple=True,
    required=True,
    metavar="BDF:REGION[,cache=auto|require|forbid]",
    help="The region.",
)
@click.option(
    "--uapi",
    type=UAPI,
    default="auto",
    help="As for run.",
)
@click.option(
    "--guest-has",
    multiple=True,
    type=click.Choice(["mte"]),
    help="The guest will have memory tagging: the scratch VM has, too.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@host_option
def verify(
    bars: tuple[str, ...], *, uapi: str, guest_has: tuple[str, ...], as_json: bool, host: str
) -> None:
    """Prove which memory type stage 2 gives a region, and print the evidence of both stages.

    A scratch VM maps the region and accesses it in ways that only the memory type decides. The
    region's contents are restored. Exits with status 3 if a promise was not kept.
    """
    configs = tuple(parse_bar(text) for text in bars)
    if not is_native(host):
        sys.exit(run_there(host))
    features = Features(mte="mte" in guest_has)
    with ExitStack() as owned:
        system = owned.enter_context(System.open())
        capability = with_uapi(HostCapability.probe(system), uapi)
        capability.prepare(system)
        for region in open_all(configs, system, capability, owned, 0):
            mapped = region.attribute
            if not as_json:
                click.echo(f"{region.name}: host stage 1: {mapped.stage1.value} ({mapped.because})")
            verdicts = region.verify(features)
            for verdict in verdicts:
                if as_json:
                    stage1 = {"stage1": mapped.stage1.value, "stage1_because": mapped.because}
                    click.echo(json.dumps({"what": region.name, **stage1, **verdict.as_json()}))
                else:
                    click.echo(f"{region.name}: stage 2: {verdict}")
            if not verdicts:
                click.echo(f"{region.name}: no mapping: every access is trapped")
            for verdict in verdicts:
                region.check(verdict)
