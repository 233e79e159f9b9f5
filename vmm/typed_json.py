"""Frozen dataclasses as JSON that people read, and back with the member at fault named.

An integer of type `Hex` is a string such as ``"0x1f"``: registers, addresses. Bytes are hexadecimal
text. A member of type `Any` is left as JSON values, for whoever knows its type.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from vmm.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

Hex = Annotated[int, 64]
"""An integer of 64 bits that is written in hexadecimal."""

Wide = Annotated[int, 2048]
"""The same with up to 2048 bits: a register of SVE."""

T = TypeVar("T")


def encode(value: Any, kind: Any = None) -> Any:
    """Return *value*, of type *kind*, as JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value), include_extras=True)
        return {
            field.name: encode(getattr(value, field.name), hints[field.name])
            for field in fields(value)
        }
    kind = _without_none(kind)
    if kind is Any:  # JSON values already
        return value
    if isinstance(value, Mapping):
        inner = get_args(kind)[1]
        return {name: encode(one, inner) for name, one in value.items()}
    if isinstance(value, tuple):
        return [encode(one, get_args(kind)[0]) for one in value]
    return _encode_scalar(value, kind)


def _encode_scalar(value: Any, kind: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.hex()
    return f"{value:#x}" if kind in BITS and value is not None else value


def decode(kind: type[T], value: Any, where: str) -> T:
    """Return *value*, JSON values, as a *kind*. Raises `UserError`: *where* and the member."""
    found: T = _decode(kind, value, where)
    return found


def load(path: Path, what: str, newest: int) -> dict[str, Any]:
    """Return the object in the JSON file *path*, whose ``format`` is *what*.

    Raises `UserError`: there is no such file, it is something else, or its ``version`` is not
    between 1 and *newest*.
    """
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", f"name a file with a {what}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}", f"name a file with a {what}") from error
    if not isinstance(value, dict) or value.get("format") != what:
        raise UserError(f'{path}: its "format" is not "{what}"', f"name a file with a {what}")
    version = value.get("version")
    if type(version) is not int or not 1 <= version <= newest:
        raise UserError(
            f"{path}: version {version!r} of a {what}; this pyvmm reads 1 to {newest}",
            "use the pyvmm that wrote it, or a newer one",
        )
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    if value is None and type(None) in get_args(kind):
        return None
    kind = _without_none(kind)
    if is_dataclass(kind):
        return _object(kind, value, where)
    if kind in SCALARS:
        return SCALARS[kind](value, where)
    if get_origin(kind) is not None:
        return _container(kind, value, where)
    if issubclass(kind, Enum):
        if value not in [one.value for one in kind]:
            known = ", ".join(str(one.value) for one in kind)
            raise UserError(f"{where}: {_shown(value)} is none of {known}")
        return kind(value)
    if type(value) is not kind:
        raise UserError(f"{where}: {_shown(value)} is not of type {kind.__name__}")
    if kind is float and not math.isfinite(value):  # JSON of Python's has NaN and Infinity
        raise UserError(f"{where}: {_shown(value)} is no number")
    return value


def _container(kind: Any, value: Any, where: str) -> Any:
    """Return an array as a tuple, an object as a mapping with any names."""
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where}: {_shown(value)} is not an array")
        inner = get_args(kind)[0]
        return tuple(_decode(inner, one, f"{where}[{at}]") for at, one in enumerate(value))
    if not isinstance(value, dict):
        raise UserError(f"{where}: {_shown(value)} is not an object")
    inner = get_args(kind)[1]
    return {name: _decode(inner, one, f"{where}.{name}") for name, one in value.items()}


def _object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {_shown(value)} is not an object")
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]
    for name in names:
        if name not in value:
            raise UserError(f"{where}: there is no member {name}")
    for name in value:
        if name not in names:
            raise UserError(f"{where}: {name} is no member that this version has")
    return kind(**{name: _decode(hints[name], value[name], f"{where}.{name}") for name in names})


def _hexadecimal(bits: int, value: Any, where: str) -> int:
    if isinstance(value, str) and value.startswith("0x"):
        try:
            number = int(value, 16)
        except ValueError:
            number = -1
        if 0 <= number < 1 << bits:
            return number
    raise UserError(f'{where}: {_shown(value)} is not a number of {bits} bits such as "0x1f"')


def _bytes(value: Any, where: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {_shown(value)} is no bytes in hexadecimal") from None


BITS: Final = {Hex: 64, Wide: 2048}
SCALARS: Final[dict[Any, Callable[[Any, str], Any]]] = {
    Any: lambda value, _where: value,
    bytes: _bytes,
    **{kind: partial(_hexadecimal, bits) for kind, bits in BITS.items()},
}
"""What reads a value of a type that JSON lacks."""


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (one for one in get_args(kind) if one is not type(None))
    return kind


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
