"""Open what ``--console`` asks for: the console device, and the host's end of each port."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmm.errors import host_errors
from vmm.terminal.console import terminal_size
from vmm.virtio.console.device import Console

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.config.console import ConsoleConfig
    from vmm.events import Events
    from vmm.loop import Loop
    from vmm.virtio.console.chardev.chardev import Chardev
    from vmm.virtio.queue import MemoryMap


def open_console(  # noqa: PLR0913, PLR0917  (all independent)
    name: str,
    configs: Sequence[ConsoleConfig],
    memory: MemoryMap,
    events: Events,
    loop: Loop,
    say: Callable[[str], object],
) -> Console:
    """Return a console device with a port for each of *configs*.

    *say* tells the user which pseudo-terminals were made. Raises `UserError` and `HostError`.
    """
    with ExitStack() as undo:
        ends = open_ends(loop, configs)
        for chardev, _ in ends:
            undo.callback(chardev.close)
        device = Console(name, memory, events, ends)
        undo.pop_all()
    for port in device.ports.values():
        if port.chardev.path:
            say(f"console port {port.name or port.number} is {port.chardev.path}")
    return device


def open_ends(loop: Loop, configs: Sequence[ConsoleConfig]) -> list[tuple[Chardev, str]]:
    """Return a chardev and a name for each of *configs*. Raises `UserError` and `HostError`."""
    with ExitStack() as undo:
        ends = [(undo.enter_context(_open(loop, each)), each.name) for each in configs]
        undo.pop_all()
    return ends


def _open(loop: Loop, config: ConsoleConfig) -> Chardev:
    option = f"--console {config.kind}"
    with host_errors(option):  # no descriptors left
        return _open_kind(loop, config, option)


def _open_kind(loop: Loop, config: ConsoleConfig, option: str) -> Chardev:
    if config.kind == "file" and config.path is not None:
        from vmm.virtio.console.chardev.file import FileChardev

        return FileChardev(loop, config.path, option)
    if config.kind == "unix" and config.path is not None:
        from vmm.virtio.console.chardev.unix import UnixChardev

        return UnixChardev(loop, config.path, option)
    if config.kind == "pty":
        from vmm.virtio.console.chardev.pty import PtyChardev

        return PtyChardev(loop, option)
    from vmm.virtio.console.chardev.pipes import PipeChardev

    pipes = PipeChardev(loop)
    if config.kind == "stdio":
        pipes.size = terminal_size()
    return pipes
