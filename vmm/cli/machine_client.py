"""The running machine that a command is about, here or in a lab host."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmm.cli.place import is_native, run_there
from vmm.control.client import Client
from vmm.control.names import names
from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def client_of(name: str | None, host: str) -> Iterator[Client]:
    """Yield a connection to the machine *name*; None: to the one that runs.

    With a lab *host* the same command runs there, and this process ends with its status. Raises
    `UserError`: no such machine runs, or which one is meant cannot be told.
    """
    if not is_native(host, any_machine=True):
        sys.exit(run_there(host, start=False))
    with Client.of(name or _only_one()) as client:
        yield client


def _only_one() -> str:
    found = names()
    if len(found) == 1:
        return found[0]
    what = f"these run: {', '.join(found)}" if found else "none runs"
    raise UserError(f"which machine? {what}", "name one of pyvmm ps, or its --host")
