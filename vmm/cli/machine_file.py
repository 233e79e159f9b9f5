"""A machine as a TOML file: ``pyvmm run machine.toml``, and ``--print-config``, which writes one.

    image = "Image"
    memory = "2G"
    disk = ["root.img,ro", "data.img"]
    rng = true

The keys are the long options of ``pyvmm run``, with or without underscores for hyphens; the values
are what the command line takes. An option on the command line replaces the file's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import click

from vmm.cli.request import COMMAND
from vmm.config import toml_file
from vmm.errors import UserError

LEFT_OUT: Final = {"print_config", "print_python", "request"}
"""Options that are about this command, and not about a machine."""


def defaults(path: Path, command: click.Command) -> dict[str, Any]:
    """Return the file's options as click's ``default_map`` for *command*. Raises `UserError`."""
    table = toml_file.read(path, "pyvmm run --print-config writes it")
    parameters = {long_name(each): each for each in command.params}
    found: dict[str, Any] = {}
    for key, value in table.items():
        parameter = parameters.get(key.replace("-", "_"))
        if parameter is None or long_name(parameter) in LEFT_OUT:
            raise UserError(f"{path}: {key}: pyvmm run has no such option", "see pyvmm run --help")
        found[str(parameter.name)] = _checked(path, key, value, parameter)
    return found


def _checked(path: Path, key: str, value: Any, parameter: click.Parameter) -> Any:
    """Return *value*, as a list for an option that may be repeated. Raises `UserError`."""
    flag = isinstance(parameter, click.Option) and parameter.is_flag
    values = value if parameter.multiple and isinstance(value, list) else [value]
    for each in values:
        if isinstance(each, bool) is not flag or not isinstance(each, str | int | float):
            wanted = "true or false" if flag else "text or a number"
            raise UserError(f"{path}: {key}: {each!r} is not {wanted}", "see pyvmm run --help")
    return [str(each) for each in values] if parameter.multiple else value


def config(context: click.Context) -> str:
    """Return the command line in *context* as a machine file. Raises `UserError` for a COMMAND."""
    if COMMAND in context.meta:
        raise UserError("--print-config: a machine has no COMMAND", "give it when you run the file")
    return "".join(f"{name} = {_literal(value)}\n" for name, value in given(context).items())


def given(context: click.Context) -> dict[str, Any]:
    """Return what the command line and the machine file say, by long names, in the order of --help.

    Paths are text.
    """
    sources = (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.DEFAULT_MAP)
    return {
        name: _plain(context.params[str(parameter.name)])
        for parameter in context.command.params
        if context.get_parameter_source(str(parameter.name)) in sources
        and (name := long_name(parameter)) not in LEFT_OUT
    }


def long_name(parameter: click.Parameter) -> str:
    """Return the name of an argument, or of an option its long name with underscores."""
    options = (each for each in parameter.opts if each.startswith("--"))
    return next(options, str(parameter.name)).lstrip("-").replace("-", "_")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _literal(value: Any) -> str:
    """Return *value* as TOML, whose texts, numbers, booleans and arrays are JSON's but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
