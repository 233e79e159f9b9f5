"""What looks at a machine from the start, as its configuration says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import ExitStack

    from vmm.config import MachineConfig
    from vmm.events import Events
    from vmm.loop import Loop
    from vmm.machine.machine import Machine


def watch(
    config: MachineConfig, machine: Machine, loop: Loop, events: Events, owned: ExitStack
) -> None:
    """Listen for a debugger (``--gdb``) and look for stuck vCPUs (``--watchdog``), if asked to.

    Call it before the machine runs; *owned* closes what is made. Raises `UserError`.
    """
    if config.gdb is not None:
        from vmm.debug.server import Server

        owned.enter_context(Server(config.gdb, machine, loop, events))
    if config.watchdog is not None:
        from vmm.debug.stuck import Watchdog

        Watchdog(config.watchdog, machine, loop, events)
