"""What of a machine is for others: its control socket, if it has one, and its device tree."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm.config.control import ControlConfig
from vmm.errors import HostError
from vmm.events import Events
from vmm.terminal.output_filter import OutputFilter

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from typing import TextIO

    from vmm.config import MachineConfig
    from vmm.control.control import Console, Control
    from vmm.loop import Loop
    from vmm.machine.machine import Machine
    from vmm.machine.power_cycle import PowerCycle
    from vmm.terminal.console import OutputSource

    Shown = Callable[[str, OutputSource, Console], OutputSource]


def events(config: MachineConfig, stream: TextIO | None) -> Events:
    """Return where events go: to *stream*, and to clients of the control socket."""
    found = Events(stream)
    if config.control is None:
        return found
    from vmm.control.feeds import HeardEvents

    return HeardEvents(found)


class Nowhere:
    """The control of a machine that cannot be reached."""

    def share(self, _name: str, source: OutputSource, _sink: Console) -> OutputSource:
        """Return *source* itself."""
        return source

    def start(self) -> None:
        """Serve nobody."""


def listen(
    config: MachineConfig, machine: Machine, loop: Loop, emitter: Events, owned: ExitStack
) -> Control | Nowhere:
    """Listen on the machine's control socket; `Control.start` it once the process is sealed.

    *emitter* is of `events`; *owned* closes the socket. A machine for which nobody asked for a
    socket does without, if its user has no place for one: then that is an event. Raises `UserError`
    and `HostError`.
    """
    if config.control is None:
        return Nowhere()
    from vmm.control.control import Control
    from vmm.control.feeds import HeardEvents

    assert isinstance(emitter, HeardEvents), "they are made for it"
    try:
        return owned.enter_context(Control(config, machine, loop, emitter))
    except HostError as error:
        if config.control != ControlConfig():
            raise
        emitter.emit("control-off", error=str(error))
        return Nowhere()


def shown(control: Control | Nowhere, *, filtered: bool) -> Shown:
    """Return what makes of a console's output what is shown, and shares it with clients."""

    def share(name: str, source: OutputSource, sink: Console) -> OutputSource:
        shared = control.share(name, source, sink)
        return OutputFilter(shared) if filtered else shared

    return share


class KeepDeviceTree:
    """Write the device tree of a machine's first power cycle to *fd*; a watcher of the machine."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def begin(self, cycle: PowerCycle, /) -> None:
        """Write the tree. Raises `HostError`."""
        if self._fd >= 0:
            write_device_tree(self._fd, cycle.device_tree)
            self._fd = -1

    def end(self) -> None:
        """Do nothing: the file is complete."""


def write_device_tree(fd: int, tree: bytes) -> None:
    """Write *tree* to *fd*. Raises `HostError`."""
    try:
        os.write(fd, tree)
    except OSError as error:
        raise HostError(f"--dump-dtb: {error.strerror}", "free some space") from error
