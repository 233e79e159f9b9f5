"""``pyvmm probe``: what this host's KVM can do."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from vmm.cli.place import host_option, is_native, run_there
from vmm.coherence.host_report import HostReport
from vmm.errors import UserError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--all", "everything", is_flag=True, help="Also list capabilities that are 0.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "nfd"]),
    default="text",
    show_default=True,
    help="nfd: labels for Kubernetes, as a feature file of Node Feature Discovery.",
)
@click.option(
    "--valid-for",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="With nfd: let the labels expire.  [default: they do not]",
)
@click.option(
    "--uapi-profile",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Ask about what FILE names of an out-of-tree kernel, and nothing else.",
)
@host_option
def probe(  # noqa: PLR0913  (one argument for each option)
    *,
    as_json: bool,
    everything: bool,
    form: str,
    valid_for: int | None,
    uapi_profile: Path | None,
    host: str,
) -> None:
    """Print what this host's KVM can do: every capability, and facts about the host."""
    if form == "nfd" and (as_json or everything):
        raise UserError("--format nfd has neither JSON nor capabilities", "leave --json, --all out")
    if valid_for is not None and form != "nfd":
        raise UserError("--valid-for: only labels expire", "add --format nfd")
    if uapi_profile is not None and (everything or form == "nfd"):
        raise UserError("--uapi-profile: it is asked about alone", "leave --all, --format out")
    if not is_native(host):
        sys.exit(run_there(host))
    if uapi_profile is not None:
        from vmm.uapi.profile import UapiProfile
        from vmm.uapi.questions import Answers

        answers = Answers.of(UapiProfile.load(uapi_profile))
        click.echo(
            json.dumps(answers.as_json(), indent=1) if as_json else "\n".join(answers.lines())
        )
        return
    if form == "nfd":
        from vmm.state.host_description import HostDescription
        from vmm.state.labels import feature_file

        described = HostDescription.collect(devices=False)
        expiry = None if valid_for is None else time.time() + valid_for
        click.echo(feature_file(described, expiry), nl=False)
        return
    found = HostReport.run()
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=1))
    else:
        click.echo("\n".join(found.lines(everything=everything)))
