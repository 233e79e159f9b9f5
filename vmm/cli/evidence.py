"""``pyvmm evidence``: what one host does with one region, as a text to be posted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from vmm.cli import output as files
from vmm.cli.place import UAPI, host_option, is_native, run_there
from vmm.config.bar import parse_bar
from vmm.errors import UserError
from vmm.passthrough import evidence as kit

_FILE = click.Path(path_type=Path)


@click.command()
@click.option("--bar", metavar="BDF:REGION", help="The region.")
@click.option("--signed-off-by", "signer", metavar="NAME <ADDRESS>", help="Who vouches for it.")
@click.option("--output", "-o", type=_FILE, help="Write the text into this file, not to stdout.")
@click.option("--html", type=_FILE, help="Write a page into this file, too.")
@click.option(
    "--uapi",
    type=UAPI,
    default="auto",
    help="As for run.",
)
@click.option("--check", type=_FILE, help="Check a text or a mail instead, and print its facts.")
@host_option
def evidence(  # noqa: PLR0913  (one argument per option)
    *,
    bar: str | None,
    signer: str | None,
    output: Path | None,
    html: Path | None,
    uapi: str,
    check: Path | None,
    host: str,
) -> None:
    """Write what this host's KVM does with a region, to be posted to a list: probe, verdict, rows.

    What the region holds is left as it was. A region that is not known to be memory is not
    written, but 8 bytes of it are read.
    """
    if check is not None:
        try:
            posted = check.read_text(errors="replace")
        except OSError as error:
            raise UserError(f"--check {check}: {error.strerror}", "name the text's file") from error
        facts, signed = kit.read(posted, f"--check {check}")
        click.echo(json.dumps(facts, indent=1))
        click.echo(f"the facts are those of the checksum; signed off by {signed}", err=True)
        return
    if bar is None or signer is None:
        missing = "--bar BDF:REGION" if bar is None else '--signed-off-by "NAME <ADDRESS>"'
        raise UserError(f"evidence needs {missing}", "or --check FILE, to check a text")
    kit.check_signer(signer)
    config = parse_bar(bar)
    if not is_native(host):
        sys.exit(run_there(host))
    facts = kit.collect(config, uapi)
    text = kit.text(facts, signer)
    files.write([(output, text), (html, kit.page(facts, signer) if html else "")])
    if output is None:
        click.echo(text, nl=False)
