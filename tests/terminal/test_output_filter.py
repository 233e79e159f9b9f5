"""A guest's control characters on the user's terminal: shown, on request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.terminal.output_filter import OutputFilter


class Source:
    """Bytes that a guest has sent, in the pieces in which they came."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def fileno(self) -> int:
        return 7

    def drain(self, limit: int, /) -> bytes:
        piece = self.pieces.pop(0) if self.pieces else b""
        assert len(piece) <= limit
        return piece


def shown(*pieces: bytes) -> bytes:
    source = OutputFilter(Source(*pieces))
    assert source.fileno() == 7
    found = b""
    while data := source.drain(100):
        found += data
    return found


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        (b"plain\ttext\r\nand \b back", b"plain\ttext\r\nand \b back"),
        (b"\x1b]0;title\x07", b"^[]0;title^G"),
        (b"\x1b[31mred\x1b[0m", b"^[[31mred^[[0m"),
        (b"\0\x7f\x0e", b"^@^?^N"),
        ("é → 你".encode(), "é → 你".encode()),
        ("\x9b31m".encode(), b"\\x9b31m"),
        (b"\x9b31m", b"\\x9b31m"),
        (b"\xff\xfe", b"\\xff\\xfe"),
        ("a\u202eb\u2066".encode(), b"a\\u202eb\\u2066"),
    ],
)
def test_control_characters_are_shown(sent: bytes, seen: bytes) -> None:
    assert shown(sent) == seen
    assert shown(*(bytes([byte]) for byte in sent)) == seen, "in whatever pieces it comes"


@given(st.binary(max_size=90))
def test_no_escape_and_no_other_control_reaches_the_terminal(sent: bytes) -> None:
    for character in shown(sent).decode():
        assert character in "\t\n\r\b" or character >= " "
        assert not "\x7f" <= character <= "\x9f"


def test_nothing_waits_once_the_source_has_nothing() -> None:
    source = OutputFilter(Source(b"\xc3", b"", b"\xa9"))
    assert source.drain(100) == b""
    assert source.drain(100) == "é".encode()
