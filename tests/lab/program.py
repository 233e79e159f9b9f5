"""A program that runs beside a test, and what it has said."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

PYVMM = str(Path(sys.executable).with_name("pyvmm"))
PATIENCE = 300.0


class Program:
    """The program *argv* and its output, *seen*. A context manager; a subclass ends it."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.seen = b""
        self.program = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def __enter__(self) -> Self:
        return self

    def expect(self, pattern: str) -> re.Match[bytes]:
        """Wait until the output matches; return the match."""
        assert self.program.stdout
        deadline = time.monotonic() + PATIENCE
        while not (match := re.search(pattern.encode(), self.seen)):
            left = deadline - time.monotonic()
            assert left > 0, self.seen
            if select.select([self.program.stdout], [], [], left)[0]:
                data = os.read(self.program.stdout.fileno(), 65536)
                assert data, (pattern, self.seen)
                self.seen += data
        return match
