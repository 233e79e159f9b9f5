"""``pyvmm run --dry-run``: build the machine, tell what it is, and run nothing."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from vmm.arm64 import layout
from vmm.cli import reach
from vmm.cli.run_machine import prepare
from vmm.coherence import chart
from vmm.debug.watch import watch
from vmm.loop import Loop
from vmm.machine.machine import Machine
from vmm.terminal.console import terminal_size

if TYPE_CHECKING:
    from typing import TextIO

    from vmm.config import MachineConfig


def dry_run(
    config: MachineConfig, events: TextIO | None, device_tree: int | None, **_other: Any
) -> int:
    """Open and check all that the machine needs, make its VM, print what it is; return 0.

    events       where to write events; None: nowhere
    device_tree  descriptor to write the device tree to; None: nowhere
    """
    config, lender = prepare(config)
    emitter = reach.events(config, events)
    with Loop() as loop, Machine(config, loop, emitter) as machine, ExitStack() as owned:
        watch(config, machine, loop, emitter, owned)
        reach.listen(config, machine, loop, emitter, owned)
        lines, tree = machine.rehearse()
        if device_tree is not None:
            reach.write_device_tree(device_tree, tree)
        for line in (*lines, *_map(machine)):
            click.echo(line)
        if lender is not None:
            lender.freeze()
    click.echo("dry run: all that the machine needs is there, and nothing has run")
    return 0


def _map(machine: Machine) -> list[str]:
    size = terminal_size()
    return chart.table(machine.ledger(), layout.REGISTERS, size[0] if size else chart.WIDE)
