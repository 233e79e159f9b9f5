"""The rows of a survey that is as expected, made of the expectation."""

from __future__ import annotations

from vmm.coherence.verdict import MemoryType
from vmm.lab.host import matrix

TYPES = {kind.value for kind in MemoryType}
UNCACHED = ("region 0", "region 2", "then region 0", "/dev/mem of region 0, private")
"""How the names of memory end that the host does not map cacheable."""


def rows(profile: str, **changed: str) -> matrix.Rows:
    """Return the rows of *profile*; *changed* has other results by name, ``_`` for a space."""
    made = []
    for memory, results in matrix.load_expected()[profile].items():
        for flag, expected in enumerate(results):
            result = expected if flag else changed.get(memory.replace(" ", "_"), expected)
            made.append(
                {
                    "memory": memory,
                    "flag": bool(flag),
                    "answer": "ok" if result in TYPES else result,
                    "verdict": result if result in TYPES else "",
                    "evidence": ["seen"],
                    "cacheable": memory.startswith("dma-buf") or not memory.endswith(UNCACHED),
                }
            )
    return made
