"""The one parser of option values: ``VALUE,key=value,flag`` into a value and a dict.

A comma in a value is written twice (``a,,b.img``), as in QEMU's options. A key that is unknown,
that is given twice, or whose value cannot be used is an error; a key that comes close is suggested.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Key(NamedTuple):
    """What a key may be.

    parse  turn the text after ``=`` into a value; raise ValueError, with a hint, if it cannot be
    flag   whether it stands alone, without ``=``; its value is True
    many   whether it may be given several times; its value is a tuple
    """

    parse: Callable[[str], Any] = str
    flag: bool = False
    many: bool = False


FLAG = Key(flag=True)


def choice(*values: str) -> Key:
    """Return a key that takes one of *values*."""

    def parse(text: str) -> str:
        if text not in values:
            raise ValueError
        return text

    return Key(parse)


def number(allowed: range, what: str) -> Key:
    """Return a key that takes a decimal integer of *allowed*; *what* names it in hints."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,5}", text) or int(text) not in allowed:
            raise ValueError(f"{what} is from {allowed[0]} to {allowed[-1]}")
        return int(text)

    return Key(parse)


def split(text: str) -> list[str]:
    """Return the parts of *text* between commas; a double comma is one in a part."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def parse_keys(
    what: str, parts: Sequence[str], keys: Mapping[str, Key], usage: str
) -> dict[str, Any]:
    """Parse *parts*, which follow an option's value; return the values by key.

    *what* begins errors: the option and its text. *usage* is the hint where a key has no better
    one. Raises `UserError`.
    """
    found: dict[str, Any] = {}
    for part in parts:
        name, equals, text = part.partition("=")
        key = keys.get(name)
        if key is None or (key.flag and equals):
            raise UserError(f"{what}: cannot use {part!r}", _meant(name, keys) + usage)
        if name in found and not key.many:
            raise UserError(f"{what}: {name} is given twice", "leave one of the two out")
        try:
            value = True if key.flag else key.parse(text)
        except ValueError as error:
            raise UserError(f"{what}: cannot use {part!r}", str(error) or usage) from error
        found[name] = (*found.get(name, ()), value) if key.many else value
    return found


def _meant(name: str, keys: Mapping[str, Key]) -> str:
    near = get_close_matches(name, keys, n=1)
    return f"did you mean {near[0]}? " if near and near[0] != name else ""
