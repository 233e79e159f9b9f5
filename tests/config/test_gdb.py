"""``--gdb``: ports and paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.config.gdb import GdbConfig, parse_gdb
from vmm.errors import UserError


def test_digits_are_a_port_and_all_else_is_a_path() -> None:
    assert parse_gdb("1234") == GdbConfig(port=1234)
    assert parse_gdb("./1234,wait") == GdbConfig(path=Path("1234"), wait=True)
    assert parse_gdb("/run/a,,b") == GdbConfig(path=Path("/run/a,b"))


@pytest.mark.parametrize("text", ["", "0", "65536", "99999999999", "1234,waits", "1234,wait,wait"])
def test_what_cannot_be_used_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^--gdb"):
        parse_gdb(text)
