"""``pyvmm vfio``: list the host's PCI devices, bind them to VFIO, and give them back."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from vmm.cli.place import host_option, is_native, run_there
from vmm.coherence import stage1
from vmm.coherence.policy import region_attribute
from vmm.config.bdf import parse_bdf
from vmm.errors import VmmError
from vmm.vfio import binding
from vmm.vfio.listing import listing

if TYPE_CHECKING:
    from vmm.vfio.device import VfioDevice
    from vmm.vfio.region import VfioRegion

_BDF = click.argument("bdf")


@click.group()
@host_option
@click.pass_context
def vfio(context: click.Context, host: str) -> None:
    """PCI devices for guests: list them, give them to VFIO, take them back.

    BDF is a device's address: domain:bus:device.function, such as 0000:01:00.0.
    """
    context.obj = host


def _go(context: click.Context, host: str) -> None:
    """Leave for the lab if the command runs there: by its own --host, or by the group's."""
    where = context.obj if host == "auto" else host
    if not is_native(where, any_machine=True):
        sys.exit(run_there(where))


def attribute(device: VfioDevice, region: VfioRegion) -> str:
    """Return how *region* is mapped, measured; what its driver's source says, if it cannot be."""
    told = region_attribute(device.driver, region.index)
    with suppress(VmmError):
        device.enable_memory()
        with region.map() as mapping:
            area = stage1.Area(0, mapping.size, mapping.host_address)
            return stage1.judge(told, stage1.look([area])).stage1.value
    return told.stage1.value


@vfio.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array, for programs.")
@click.option("--no-open", is_flag=True, help="Open no device (opening one resets it).")
@host_option
@click.pass_context
def list_(context: click.Context, *, as_json: bool, no_open: bool, host: str) -> None:
    """List PCI devices: driver, IOMMU group, regions, and how regions can be mapped.

    A device that has a VFIO driver and is not in use is opened, which resets it, to ask about its
    regions and to measure how they are mapped.
    """
    _go(context, host)
    found = listing(attribute, ask=not no_open)
    if as_json:
        click.echo(json.dumps([entry.as_json() for entry in found], indent=1))
        return
    for entry in found:
        click.echo("\n".join(entry.lines()))
    if not found:
        click.echo("this host has no PCI devices")


@vfio.command()
@_BDF
@click.option("--driver", help="A VFIO driver.  [default: the one made for the device]")
@host_option
@click.pass_context
def bind(context: click.Context, bdf: str, driver: str | None, host: str) -> None:
    """Bind the device BDF to a VFIO driver."""
    parse_bdf(bdf)
    _go(context, host)
    got = binding.bind(bdf, driver)
    click.echo(f"{parse_bdf(bdf)} has driver {got}")


@vfio.command()
@_BDF
@host_option
@click.pass_context
def unbind(context: click.Context, bdf: str, host: str) -> None:
    """Undo a bind: give the device back to the driver it had, if any."""
    parse_bdf(bdf)
    _go(context, host)
    driver = binding.unbind(bdf)
    click.echo(f"{parse_bdf(bdf)} has {f'driver {driver}' if driver else 'no driver'} again")
