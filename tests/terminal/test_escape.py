"""Keys for pyvmm among keys for the guest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import UserError
from vmm.terminal.escape import (
    CTRL_A,
    EscapeCommand,
    EscapeKeys,
    help_lines,
    key_name,
    parse_prefix,
)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (b"ls\r", [b"ls\r"]),
        (b"\x03", [b"\x03"]),
        (b"\x01x", [EscapeCommand.QUIT]),
        (b"\x01r", [EscapeCommand.RESET]),
        (b"\x01h", [EscapeCommand.HELP]),
        (b"\x01b", [EscapeCommand.BREAK]),
        (b"\x01-\x01+", [EscapeCommand.INFLATE, EscapeCommand.DEFLATE]),
        (b"\x01st", [EscapeCommand.BREAK, b"t"]),
        (b"\x01s\x01", [EscapeCommand.BREAK, b"\x01"]),
        (b"\x01\x01", [b"\x01"]),
        (b"\x01\x01x", [b"\x01x"]),
        (b"a\x01bc\x01xd", [b"a", EscapeCommand.BREAK, b"c", EscapeCommand.QUIT, b"d"]),
        (b"\x01Q", [EscapeCommand.HELP]),
        (b"\x01", []),
    ],
)
def test_each_sequence_means_what_the_help_says(
    typed: bytes, meant: list[bytes | EscapeCommand]
) -> None:
    assert EscapeKeys(CTRL_A).feed(typed) == meant
    # Typed slowly, it means the same.
    keys = EscapeKeys(CTRL_A)
    slowly = [item for byte in typed for item in keys.feed(bytes([byte]))]
    assert [item for item in slowly if isinstance(item, EscapeCommand)] == [
        item for item in meant if isinstance(item, EscapeCommand)
    ]


@given(st.binary())
def test_without_a_prefix_all_bytes_are_the_guests(typed: bytes) -> None:
    assert EscapeKeys(None).feed(typed) == ([typed] if typed else [])


@given(st.binary())
def test_doubling_the_prefix_passes_anything(typed: bytes) -> None:
    assert EscapeKeys(CTRL_A).feed(typed.replace(b"\x01", b"\x01\x01")) == (
        [typed] if typed else []
    )


@pytest.mark.parametrize(
    ("text", "prefix"),
    [("C-a", 1), ("^A", 1), ("ctrl-B", 2), ("C-]", 0x1D), ("^\\", 0x1C), ("none", None)],
)
def test_prefixes_are_written_as_people_write_them(text: str, prefix: int | None) -> None:
    assert parse_prefix(text) == prefix


@pytest.mark.parametrize("text", ["", "a", "C-", "C-ab", "C-1", "meta-x", "^["])
def test_a_bad_prefix_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(UserError, match=r"--escape .*; say for example C-b"):
        parse_prefix(text)


@given(st.sampled_from([*range(1, 27), 0x1C, 0x1D, 0x1E, 0x1F]))
def test_a_prefix_is_named_as_it_is_parsed(prefix: int) -> None:
    assert parse_prefix(key_name(prefix)) == prefix
    assert all(line.startswith(key_name(prefix)) for line in help_lines(prefix))
