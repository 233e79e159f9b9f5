"""``pyvmm pause``, ``resume``, ``reset``, ``stop``...: orders to a running machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from vmm.cli.machine_client import client_of
from vmm.cli.place import host_option
from vmm.errors import UserError


def order(name: str, host: str, path: str, **parameters: Any) -> None:
    """Give the machine *name* at *host* an order. Raises `VmmError`."""
    with client_of(name, host) as client:
        client.ask("POST", path, parameters)


@click.command
@click.argument("name")
@host_option
def pause(name: str, host: str) -> None:
    """Hold the machine NAME still, until pyvmm resume."""
    order(name, host, "/pause")


@click.command
@click.argument("name")
@host_option
def resume(name: str, host: str) -> None:
    """Let go of the machine NAME: it goes on, unless a debugger holds it, too."""
    order(name, host, "/resume")


@click.command
@click.argument("name")
@host_option
def reset(name: str, host: str) -> None:
    """Reset the machine NAME, as its power cycled: memory is lost."""
    order(name, host, "/reset")


@click.command
@click.argument("name")
@click.option(
    "--power-button",
    type=click.FloatRange(min=0.0),
    metavar="SECONDS",
    help="Press the power button instead, and wait so long for the guest to power off.",
)
@host_option
def stop(name: str, power_button: float | None, host: str) -> None:
    """End the machine NAME as if its power failed, and wait until it has ended."""
    how = "forced" if power_button is None else "power-button"
    with client_of(name, host) as client:
        client.ask("POST", "/stop", {"how": how})
        client.wait(power_button)


@click.command
@click.argument("name")
@host_option
def snapshot(name: str, host: str) -> None:
    """Write a snapshot of the machine NAME into the directory of its --snapshot."""
    order(name, host, "/snapshot")


@click.command
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@host_option
def dump(name: str, file: Path, host: str) -> None:
    """Write the RAM of the machine NAME to FILE, as --memory-dump does, and let it go on."""
    with client_of(name, host) as client:
        try:
            fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}", "name a file to write") from error
        try:
            client.ask("POST", "/memory-dump", fds=[fd])
        finally:
            os.close(fd)
