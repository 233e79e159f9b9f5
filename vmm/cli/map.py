"""``pyvmm map``: the ledger of a machine as a table, as JSON, as an SVG picture."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path

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
from vmm.errors import UserError
from vmm.events import Events
from vmm.kvm.slots import MemorySlots
from vmm.kvm.system import System
from vmm.machine.address_space import AddressSpace
from vmm.machine.flash import Flash
from vmm.terminal.console import terminal_size


@click.command()
@click.option("--memory", "-m", default="512M", show_default=True, help="As for run.")
@click.option(
    "--bar", "bars", multiple=True, metavar="BDF:REGION[@GPA][,cache=...]", help="As for run."
)
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

    Registers the machine's memory slots in a VM without vCPUs.
    """
    config = MachineConfig(
        image=None if firmware else Path(),
        firmware=firmware,
        flash=None if flash is None else parse_flash(flash),
        pmems=tuple(parse_pmem(text) for text in pmems),
        memory=parse_size(memory, "--memory"),
        bars=tuple(parse_bar(text) for text in bars),
        write_back=memory_write_back,
        uapi=uapi,
    )
    if not is_native(host):
        with ExitStack() as owned:
            lent = tuple(each.text for each in lend(config.pmems, owned))
            click.get_current_context().params["pmems"] = lent
            sys.exit(run_there(host))
    with (
        System.open() as system,
        AddressSpace(config, system) as space,
        Flash(config, MmioBus(), Events()) if firmware or flash else nullcontext() as banks,
        system.create_vm(space.end) as vm,
    ):
        slots = MemorySlots(vm)
        space.plug(slots)
        if banks is not None:
            banks.plug(slots)
        entries = list(space.ledger(banks.shown() if banks is not None else ()))
        if banks is not None:
            banks.unplug()
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
