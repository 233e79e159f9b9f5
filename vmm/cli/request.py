"""What ``pyvmm run`` is to run: a machine, as its options describe it."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, Final

import click

from vmm.config import MachineConfig
from vmm.config.size import parse_size
from vmm.errors import UserError
from vmm.terminal.escape import parse_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.config.command import CommandConfig

COMMAND: Final = "vmm.cli.request.command"
"""Where the words after ``--`` are in click's context."""


def read(options: dict[str, Any]) -> dict[str, Any]:
    """Return what to run: the machine, where events go, the console's prefix. Raises `UserError`.

    Here they are options; in a lab host they are what `run` on the outside sent.
    """
    if options["request"] is not None:
        from vmm.config import codec

        return codec.loads(options["request"])
    config, escape = _configure(options)
    timeout = options["timeout"]
    # The codec has no fractions.
    milliseconds = None if timeout is None else max(1, round(timeout * 1000))
    return {
        "config": config,
        "events": options["events"],
        "escape": escape,
        "milliseconds": milliseconds,
        "filtered": options["console_filter"],
    }


def _configure(options: dict[str, Any]) -> tuple[MachineConfig, int | None]:
    """Return the machine and the console's escape prefix. Raises `UserError`."""
    image, initrd, tree = options["image"], options["initrd"], options["kernel_tree"]
    if tree is not None:
        if image is not None or options["firmware"] is not None:
            raise UserError("--kernel-tree: DIR has the kernel already", "leave IMAGE out")
        from vmm.cli import kernel_tree

        image = kernel_tree.image(tree)
        initrd = initrd or kernel_tree.initrd()
    consoles = _each(options["consoles"], "console")
    shares = _parse("shares", "share")(options["shares"]) if options["shares"] else ()
    command = _command()
    if command is not None:
        from vmm.config import command as parts

        consoles = (*parts.consoles(command), *consoles)
        shares = (*parts.shares(command), *shares)
    config = MachineConfig(
        image=image,
        firmware=options["firmware"],
        flash=None if options["flash"] is None else _parse("flash", "firmware")(options["flash"]),
        initrd=initrd,
        cmdline=options["cmdline"],
        cpus=options["cpus"],
        cpu_baseline=options["cpu_baseline"],
        memory=parse_size(options["memory"], "--memory"),
        reboot=not options["no_reboot"] and command is None,
        panic=options["panic"],
        sandbox=options["sandbox"],
        bars=_each(options["bars"], "bar"),
        write_back=options["memory_write_back"],
        uapi=options["uapi"],
        sanitizer=options["coherency_sanitizer"],
        memory_dump=options["memory_dump"],
        verify=options["verify"],
        rng=options["rng"],
        disks=_each(options["disks"], "disk"),
        consoles=consoles,
        pmems=_each(options["pmems"], "pmem"),
        balloon=_balloon(options["balloon"], options["balloon_size"]),
        transport=options["transport"],
        nets=_parse("nets", "net")(options["nets"]) if options["nets"] else (),
        shares=shares,
        vsock=None if options["vsock"] is None else _parse("vsock")(options["vsock"]),
        vfio=_each(options["vfio"], "vfio"),
        command=command,
    )
    if tree is not None:
        kernel_tree.check(tree, config)
    return config, parse_prefix(options["escape"])


def _command() -> CommandConfig | None:
    """Return the command after ``--``. Raises `UserError`."""
    words = click.get_current_context().meta.get(COMMAND)
    if words is None:
        return None
    if not words:
        raise UserError("--: no COMMAND follows", "write pyvmm run IMAGE -- COMMAND")
    from vmm.config.command import CommandConfig

    try:
        directory = os.getcwd()  # noqa: PTH109  (text)
    except OSError as error:
        raise UserError(f"the current directory: {error.strerror}", "cd into another") from error
    terminal = os.isatty(0) and os.isatty(1)
    return CommandConfig(words, directory, (os.environ.get("TERM") or "dumb") if terminal else "")


def _parse(name: str, module: str = "") -> Callable[[Any], Any]:
    """Return ``parse_NAME``, for an option that is given: emulated, a module costs 10 ms."""
    found: Callable[[Any], Any] = getattr(
        importlib.import_module(f"vmm.config.{module or name}"), f"parse_{name}"
    )
    return found


def _each(texts: Sequence[str], name: str) -> tuple[Any, ...]:
    return tuple(_parse(name)(text) for text in texts)


def _balloon(wanted: bool, size: str | None) -> int | None:  # noqa: FBT001  (a flag)
    if not wanted and size is None:
        return None
    from vmm.config.balloon import parse_balloon

    return parse_balloon(wanted, size)
