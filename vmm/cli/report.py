"""``pyvmm report``: one HTML page about a run, from its trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vmm.cli import output as files
from vmm.errors import UserError
from vmm.observe.recording import read
from vmm.observe.report import page

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("trace", type=_FILE)
@click.option("--events", type=_FILE, help="What pyvmm run --events wrote: listed on the page.")
@click.option("--matrix", type=_FILE, help="What pyvmm lab matrix --json wrote: its truth table.")
@click.option("--output", "-o", type=_FILE, help="The page.  [default: TRACE with .html]")
def report(*, trace: Path, events: Path | None, matrix: Path | None, output: Path | None) -> None:
    """Make a page about the run whose pyvmm run --trace is TRACE: phases, exits, queues, memory.

    The page is one file of HTML with its plots.
    """
    told = _events(events) if events is not None else []
    more = _matrix(matrix) if matrix is not None else ""
    path = output or trace.with_suffix(".html")
    files.write([(path, page(trace.name, read(trace), told, more))])
    click.echo(str(path))


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}", "name a file to read") from error


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in _read(path, "--events").splitlines()]
    except ValueError as error:
        raise UserError(
            f"--events {path}: not lines of JSON", "name a file of pyvmm run --events"
        ) from error


def _matrix(path: Path) -> str:
    from vmm.lab.host import matrix

    try:
        return "<h2>Truth table</h2>\n" + matrix.html_table(json.loads(_read(path, "--matrix")))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--matrix {path}: not a truth table", "name a file of pyvmm lab matrix --json"
        ) from error
