"""The ends that ``--console`` asks for."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmm.errors import host_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.config.console import ConsoleConfig
    from vmm.loop import Loop
    from vmm.virtio.console.chardev.chardev import Chardev


def open_ends(loop: Loop, consoles: Sequence[ConsoleConfig]) -> list[tuple[Chardev, str]]:
    """Return a chardev and a name for each of *consoles*. Raises `UserError` and `HostError`."""
    with ExitStack() as undo:
        ends = [(undo.enter_context(_open(loop, each)), each.name) for each in consoles]
        undo.pop_all()
    return ends


def _open(loop: Loop, config: ConsoleConfig) -> Chardev:
    option = f"--console {config.kind}"
    with host_errors(option):  # no descriptors left
        return _open_kind(loop, config, option)


def _open_kind(loop: Loop, config: ConsoleConfig, option: str) -> Chardev:
    if config.kind == "file" and config.path is not None:
        from vmm.virtio.console.chardev.file import FileChardev  # noqa: PLC0415

        return FileChardev(loop, config.path, option)
    if config.kind == "unix" and config.path is not None:
        from vmm.virtio.console.chardev.unix import UnixChardev  # noqa: PLC0415

        return UnixChardev(loop, config.path, option)
    if config.kind == "pty":
        from vmm.virtio.console.chardev.pty import PtyChardev  # noqa: PLC0415

        return PtyChardev(loop, option)
    from vmm.virtio.console.chardev.pipes import PipeChardev  # noqa: PLC0415

    pipes = PipeChardev(loop)
    pipes.size = terminal_size()
    return pipes


def terminal_size() -> tuple[int, int] | None:
    """Return the columns and rows of the terminal on standard output; None: it is none."""
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return None
    return size.columns, size.lines
