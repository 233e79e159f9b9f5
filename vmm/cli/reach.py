"""How a running machine is reached: its control socket, if it has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.events import Events

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from typing import TextIO

    from vmm.config import MachineConfig
    from vmm.loop import Loop
    from vmm.machine.machine import Machine


def events(config: MachineConfig, stream: TextIO | None) -> Events:
    """Return where events go: to *stream*, and to clients of the control socket."""
    found = Events(stream)
    if config.control is None:
        return found
    from vmm.control.feeds import HeardEvents

    return HeardEvents(found)


def listen(
    config: MachineConfig, machine: Machine, loop: Loop, emitter: Events, owned: ExitStack
) -> Callable[[], object]:
    """Listen on the machine's control socket; return what starts to serve, once it is sealed.

    *emitter* is of `events`; *owned* closes the socket. Raises `UserError`.
    """
    if config.control is None:
        return lambda: None
    from vmm.control.control import Control
    from vmm.control.feeds import HeardEvents

    assert isinstance(emitter, HeardEvents), "they are made for it"
    return owned.enter_context(Control(config, machine, loop, emitter)).start
