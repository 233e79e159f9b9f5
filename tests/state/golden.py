"""Descriptions of every lab profile's host, as they were collected: ``golden/PROFILE.json``.

``PYVMM_GOLDEN=write .venv/bin/pytest tests/lab/test_compat.py`` collects them again, and
``PYVMM_GOLDEN=write .venv/bin/pytest tests/state/test_matrix.py`` writes the matrix.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from vmm.state.host_description import HostDescription

DIRECTORY = Path(__file__).parent / "golden"
MATRIX = DIRECTORY / "matrix.txt"
WRITE = os.environ.get("PYVMM_GOLDEN") == "write"


def names() -> list[str]:
    """Return the names of the profiles, those that pyvmm lab lists first coming first."""
    return sorted(path.stem for path in DIRECTORY.glob("*.json"))


def golden(profile: str) -> HostDescription:
    return HostDescription.read(DIRECTORY / f"{profile}.json")


def normal(text: str) -> str:
    """Return *text*, of `compat save`, with what other days bring: a kernel's third number."""
    return re.sub(r'"kernel": "(\d+\.\d+)[^"]*"', r'"kernel": "\1"', text)
