"""What ``pyvmm run`` is to run: a machine, as its options describe it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from vmm.config.cgroup import parse_cgroup
from vmm.config.control import parse_control
from vmm.config.options import OPTIONS, machine
from vmm.errors import UserError
from vmm.terminal.escape import parse_prefix

if TYPE_CHECKING:
    from vmm.config import MachineConfig
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
        "trace": options["trace"],
        "device_tree": options["dump_dtb"],
        "dry": options["dry_run"],
        "record_ioctls": options["record_ioctls"],
        "escape": escape,
        "milliseconds": milliseconds,
        "filtered": options["console_filter"],
    }


BESIDE_RESTORE: Final = {
    *("restore", "incoming", "snapshot", "host", "events", "escape", "timeout"),
    *("console_filter", "memory_dump", "sandbox", "cgroup", "gdb", "watchdog", "trace"),
    *("name", "control", "shell", "dry_run", "record_ioctls"),
}
"""Parameters that go with ``--restore`` and ``--incoming``: what belongs to a run alone."""


def _check_beside(option: str, origin: str, *others: str) -> None:
    """Raise `UserError` if something but *others* is given beside *option* that *origin* has."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and name not in {*BESIDE_RESTORE, *others}:
            what = "IMAGE" if isinstance(parameter, click.Argument) else parameter.opts[0]
            raise UserError(
                f"{option}: {origin} has the machine, and {what} with it", "leave it out"
            )


def _configure(options: dict[str, Any]) -> tuple[MachineConfig, int | None]:
    """Return the machine and the console's escape prefix. Raises `UserError`."""
    if options["restore"] is not None:
        _check_beside("--restore", "the snapshot", "disks")
    if options["incoming"] is not None:
        _check_beside("--incoming", "the source")
        for other in ("restore", "dry_run"):
            if options[other]:
                name = other.replace("_", "-")
                raise UserError(f"--incoming: --{name} has no place there", "leave one of them out")
    image, initrd, tree = options["image"], options["initrd"], options["kernel_tree"]
    if tree is not None:
        if image is not None or options["firmware"] is not None:
            raise UserError("--kernel-tree: DIR has the kernel already", "leave IMAGE out")
        from vmm.cli import kernel_tree

        image = kernel_tree.image(tree)
        initrd = initrd or kernel_tree.initrd()
    plural = {name: f"{name}s" for name in ("disk", "console", "pmem", "bar", "net", "share")}
    config = machine(
        image,
        initrd=initrd,
        **{name: options[plural.get(name, name)] for name in OPTIONS.keys() - {"image", "initrd"}},
    )
    control = parse_control(options["name"], options["control"], with_shell=options["shell"])
    cgroup = options["cgroup"]
    config = replace(
        config,
        sandbox=options["sandbox"],
        cgroup=None if cgroup is None else parse_cgroup(cgroup),
        control=control,
    )
    command = _command()
    if command is not None:
        from vmm.config import command as parts

        config = replace(
            config,
            consoles=(*parts.consoles(command), *config.consoles),
            shares=(*parts.shares(command), *config.shares),
            reboot=False,
            command=command,
        )
    if tree is not None:
        kernel_tree.check(tree, config)
        if config.watchdog is not None and config.watchdog.symbols is None:
            watchdog = config.watchdog._replace(symbols=kernel_tree.system_map(tree))
            config = replace(config, watchdog=watchdog)
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
