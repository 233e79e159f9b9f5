"""Show a guest's control characters instead of sending them to the user's terminal.

Terminals obey what they are sent: titles, clipboards, answers that look typed, other screens. A
guest that is not trusted can write such sequences to its console.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vmm.terminal.console import OutputSource

KEPT: Final = "\t\n\r\b"
"""Control characters that only move within a line, or to the next."""

BIDIRECTIONAL: Final = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Characters that change the order in which others are shown (Unicode, annex 9)."""

SHOWN: Final = {
    **{code: f"^{chr(code ^ 0x40)}" for code in (*range(0x20), 0x7F) if chr(code) not in KEPT},
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
    **{code: f"\\u{code:04x}" for code in BIDIRECTIONAL},
}
"""What is shown for each of C0 (as cat -v does), C1 and the bidirectional controls."""


class OutputFilter:
    """What *source* has sent, with its control characters shown; a source as well.

    The guest's bytes are UTF-8; others are shown by their number.
    """

    def __init__(self, source: OutputSource) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def fileno(self) -> int:
        """Return the source's descriptor."""
        return self._source.fileno()

    def drain(self, limit: int, /) -> bytes:
        """Return what up to *limit* bytes of the source are shown as; b"": none wait."""
        while data := self._source.drain(limit):
            if text := self._decoder.decode(data):
                return text.translate(SHOWN).encode()
        return b""
