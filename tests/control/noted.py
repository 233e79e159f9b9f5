"""Run tests of the control server in a process that notes what its policy would refuse.

    noted.py ARGUMENT...    pytest's

The last line is JSON: the kinds of control threads, and the calls of theirs that were noted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[2]))

import pytest

from vmm import sandbox, thread

kinds: set[str] = set()
start = thread.start


def note(name: str, *arguments: Any, kind: int = thread.LOOP) -> Any:
    if name == "control":
        kinds.add(sandbox.THREADS[kind])
    return start(name, *arguments, kind=kind)


thread.start = note  # type: ignore[assignment]
sandbox.confine("log")
status = pytest.main(sys.argv[1:])
noted = sorted({each.call for each in sandbox.denials() if each.thread == "control"})
print(f"\n{json.dumps([sorted(kinds), noted])}")  # noqa: T201
sys.exit(status)
