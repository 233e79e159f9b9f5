"""``pyvmm run --print-python``: the same machine as a program that uses ``import vmm``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from vmm.cli.machine_file import given
from vmm.cli.place import is_native, profile_of
from vmm.cli.request import COMMAND
from vmm.config.options import OPTIONS
from vmm.errors import UserError

if TYPE_CHECKING:
    import click

EXIT: Final = 'sys.exit(0 if ending in ("powered-off", "reset") else 4)'

LEFT_OUT: Final = {
    *("host", "escape", "sandbox", "cgroup", "name", "control", "dump_dtb", "dry_run", "shell"),
}
"""Options that a program needs none of: where it runs it says, and it is not sealed."""

WIDTH: Final = 100
"""Columns of a line, as this repository has them."""


def program(context: click.Context) -> str:
    """Return the program for the command line in *context*. Raises `UserError`: there is none."""
    if COMMAND in context.meta:
        raise UserError(
            "--print-python: a program has no COMMAND", "let it type the command on the console"
        )
    options = {name: value for name, value in given(context).items() if name not in LEFT_OUT}
    for name in options.keys() - OPTIONS.keys():
        raise UserError(f"--print-python: --{name.replace('_', '-')} has no counterpart there")
    words = [_literal(options.pop("image"))] if "image" in options else []
    words += [f"{name}={_literal(value)}" for name, value in options.items()]
    host = context.params["host"]
    if is_native(host, any_machine=True):
        head, indent = f"with vmm.Machine({', '.join(words)}) as machine:", ""
        if len(head) > WIDTH:
            head = _long("with vmm.Machine(", words, ") as machine:")
    else:
        profile, indent = profile_of(host), "    "
        head = f'with vmm.Lab("{profile}") as lab:\n'
        line = f"    with lab.Machine({', '.join(words)}) as machine:"
        if len(line) > WIDTH:
            line = _long("    with lab.Machine(", words, "    ) as machine:")
        head += line
    body = ["machine.start()", "ending = vmm.interact(machine)  # C-] leaves the console"]
    lines = [f"{indent}    {each}" for each in body]
    return "\n".join(["import sys", "", "import vmm", "", head, *lines, "", EXIT])


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]" if len(value) > 1 else _literal(value[0])
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _long(before: str, words: list[str], after: str) -> str:
    indent = " " * (len(before) - len(before.lstrip()) + 4)
    return "\n".join([before, *(f"{indent}{word}," for word in words), after])
