"""``--cgroup``: a machine's own cgroup, and its limits."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from vmm.config.option import split
from vmm.errors import UserError

SYNTAX: Final = "PARENT[,FILE=VALUE]..."
USAGE: Final = f"write --cgroup {SYNTAX}, for example --cgroup machines,memory.max=2G,pids.max=64"

FILE: Final = re.compile(r"(?!cgroup\.)[a-z]+(\.[a-zA-Z0-9]+)+")
"""A file of a controller of cgroup v2: its name begins with the controller's."""


class CgroupConfig(NamedTuple):
    """The cgroup of a machine.

    parent  the cgroup that it is made in: a path below the mount of cgroup v2
    limits  files and what is written to them, for example ("memory.max", "2G")
    """

    parent: str
    limits: tuple[tuple[str, str], ...] = ()


def parse_cgroup(text: str) -> CgroupConfig:
    """Parse `SYNTAX`. Raises `UserError`."""
    parent, *parts = split(text)
    if ".." in parent.split("/"):
        raise UserError(f"--cgroup {text}: {parent!r} leads out of itself", USAGE)
    limits: dict[str, str] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if not FILE.fullmatch(name) or not value or "\n" in value:
            raise UserError(f"--cgroup {text}: cannot use {part!r}", USAGE)
        if name in limits:
            raise UserError(f"--cgroup {text}: {name} is given twice", "leave one of the two out")
        limits[name] = value
    return CgroupConfig(parent.strip("/"), tuple(limits.items()))
