"""``pyvmm top``: what a machine does, live."""

from __future__ import annotations

import os
import select
import termios
import time
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from vmm.cli.machine_client import client_of
from vmm.cli.place import host_option
from vmm.control.top import screen
from vmm.errors import HostError
from vmm.terminal.console import terminal_size

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTER: Final = "\x1b[?1049h\x1b[?25l"
LEAVE: Final = "\x1b[?25h\x1b[?1049l"
"""xterm's alternate screen, and the cursor that is hidden on it."""
WIDE: Final = (200, 1000)
"""Columns and rows without a terminal."""


@click.command
@click.argument("name", required=False)
@click.option(
    "--every",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Look so often.",
)
@host_option
def top(name: str | None, every: float, host: str) -> None:
    """Show what the machine NAME does: exits by vCPU, reason and device, queues, interrupts.

    On a terminal until q; else once. Without NAME it is the one machine that runs.
    """
    with client_of(name, host) as client:
        live = os.isatty(0) and os.isatty(1)
        with _screen(live):
            before, since = client.ask("GET", "/counters"), time.monotonic()
            while not _key(every, live):
                try:
                    now, at = client.ask("GET", "/counters"), time.monotonic()
                except HostError:
                    if live:
                        break
                    raise
                lines = screen(before, now, at - since, (terminal_size() or WIDE))
                if not live:
                    click.echo("\n".join(lines))
                    return
                text = "\x1b[K\r\n".join(lines)
                click.echo(f"\x1b[H{text}\x1b[K\x1b[J", nl=False)
                before, since = now, at


@contextmanager
def _screen(live: bool) -> Iterator[None]:  # noqa: FBT001  (whether there is one)
    if not live:
        yield
        return
    modes = termios.tcgetattr(0)
    try:
        tty.setcbreak(0)
        click.echo(ENTER, nl=False)
        yield
    finally:
        click.echo(LEAVE, nl=False)
        termios.tcsetattr(0, termios.TCSADRAIN, modes)


def _key(seconds: float, live: bool) -> bool:  # noqa: FBT001
    """Wait so long for a key; return whether it is q, or the end of the terminal."""
    if not live:
        time.sleep(seconds)
        return False
    ready, _, _ = select.select([0], [], [], seconds)
    return bool(ready) and os.read(0, 1) in {b"q", b"Q", b""}
