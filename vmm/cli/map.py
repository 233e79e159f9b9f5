"""``pyvmm map``: the ledger of a machine as a table, as JSON, as an SVG picture."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmm.arm64 import layout
from vmm.bus import MmioBus
from vmm.cli.ends import lend
from vmm.cli.place import UAPI, host_option, is_native, run_there
from vmm.coherence import chart
from vmm.config import MachineConfig
from vmm.config.bar import parse_bar
from vmm.config.firmware import parse_flash
from vmm.config.pmem import parse_pmem
from vmm.config.size import parse_size
from vmm.config.vfio import parse_vfio
from vmm.errors import UserError
from vmm.events import Events
from vmm.irq import SwitchableLine
from vmm.kvm.slots import MemorySlots
from vmm.kvm.system import System
from vmm.machine.address_space import AddressSpace
from vmm.machine.flash import Flash
from vmm.machine.pci_root import PciRoot
from vmm.passthrough.devices import Passthrough
from vmm.pci.enumerate import enumerate_bars
from vmm.terminal.console import terminal_size

if TYPE_CHECKING:
    from vmm.coherence.ledger import Entry


@click.command()
@click.option("--memory", "-m", default="512M", show_default=True, help="As for run.")
@click.option(
    "--bar", "bars", multiple=True, metavar="BDF:REGION[@GPA][,cache=...]", help="As for run."
)
@click.option("--vfio", multiple=True, metavar="BDF[,bind]...", help="As for run.")
@click.option("--pmem", "pmems", multiple=True, metavar="PATH[,ro]...", help="As for run.")
@click.option("--firmware", type=click.Path(path_type=Path), metavar="FILE", help="As for run.")
@click.option("--flash", metavar="FILE[,ro]", help="As for run.")
@click.option("--memory-write-back", is_flag=True, help="As for run.")
@click.option("--uapi", type=UAPI, default="auto")
@click.option(
    "--svg",
    type=click.Path(path_type=Path),
    help="Also write a picture of the IPA space to this file.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@host_option
def map(  # noqa: A001, PLR0913  (the command's name; one argument per option)
    *,
    memory: str,
    bars: tuple[str, ...],
    vfio: tuple[str, ...],
    pmems: tuple[str, ...],
    firmware: Path | None,
    flash: str | None,
    memory_write_back: bool,
    uapi: str,
    svg: Path | None,
    as_json: bool,
    host: str,
) -> None:
    """Print the ledger: what each range of guest memory is promised, and what maintenance is owed.

    Registers the machine's memory slots in a VM without vCPUs. BARs of --vfio are where an
    operating system would place them; the guest that runs may place them elsewhere.
    """
    config = MachineConfig(
        image=None if firmware else Path(),
        firmware=firmware,
        flash=None if flash is None else parse_flash(flash),
        pmems=tuple(parse_pmem(text) for text in pmems),
        memory=parse_size(memory, "--memory"),
        bars=tuple(parse_bar(text) for text in bars),
        vfio=tuple(parse_vfio(text) for text in vfio),
        write_back=memory_write_back,
        uapi=uapi,
    )
    if not is_native(host):
        with ExitStack() as owned:
            lent = tuple(each.text for each in lend(config.pmems, owned))
            click.get_current_context().params["pmems"] = lent
            sys.exit(run_there(host))
    entries = _entries(config)
    if as_json:
        click.echo(json.dumps([entry.as_json() for entry in entries], indent=1))
    else:
        size = terminal_size()
        width = size[0] if size else chart.WIDE
        click.echo("\n".join(chart.table(entries, layout.REGISTERS, width)))
    if svg is not None:
        try:
            svg.write_text(chart.svg(entries, layout.REGISTERS))
        except OSError as error:
            raise UserError(f"--svg {svg}: {error.strerror}") from error


def _entries(config: MachineConfig) -> list[Entry]:
    """Return the ledger of a VM with the memory of *config*. Raises `UserError`, `HostError`."""
    bus, events = MmioBus(), Events()
    with ExitStack() as owned:
        system = owned.enter_context(System.open())
        space = owned.enter_context(AddressSpace(config, system))
        banks = None
        if config.firmware is not None or config.flash is not None:
            banks = owned.enter_context(Flash(config, bus, events))
        root, devices = _open_devices(config, system, space, bus, owned)
        slots = MemorySlots(owned.enter_context(system.create_vm(space.end)))
        space.plug(slots)
        if banks is not None:
            banks.plug(slots)
            owned.callback(banks.unplug)
        if root is not None and devices is not None:
            owned.callback(devices.disconnect)
            devices.plug(slots)
            enumerate_bars(root.host)
        return list(space.ledger(banks.shown() if banks is not None else ()))


def _open_devices(
    config: MachineConfig, system: System, space: AddressSpace, bus: MmioBus, owned: ExitStack
) -> tuple[PciRoot, Passthrough] | tuple[None, None]:
    """Open the devices of ``--vfio``, if any, behind a PCI root."""
    if not config.vfio:
        return None, None
    events = Events()
    root = owned.enter_context(PciRoot(bus, lambda _spi: SwitchableLine(), events))
    devices = owned.enter_context(
        Passthrough(
            config.vfio,
            system=system,
            capability=space.capability,
            msis=root.msis,
            events=events,
        )
    )
    root.attach_devices(devices.functions, space)
    space.reserve(root.place(space.end, 1 << system.ipa_bits()))
    return root, devices
