"""A `MachineConfig` as JSON text, and back: how `pyvmm run` reaches a lab host.

``null``, booleans, integers and strings are JSON's own, and a tuple is an array. Every other value
is an object with one member, named after the value's type. Fields at their default are left out.

    {"DiskConfig": {"path": {"Path": "/srv/root.img"}, "read_only": true}}
"""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MODULES: Final = {
    "MachineConfig": "vmm.config",
    "BarConfig": "vmm.config.bar",
    "CgroupConfig": "vmm.config.cgroup",
    "CommandConfig": "vmm.config.command",
    "ConsoleConfig": "vmm.config.console",
    "ControlConfig": "vmm.config.control",
    "DiskConfig": "vmm.config.disk",
    "FlashConfig": "vmm.config.firmware",
    "Forward": "vmm.config.net",
    "NetConfig": "vmm.config.net",
    "PeerConfig": "vmm.config.incoming",
    "NetKind": "vmm.config.net",
    "PmemConfig": "vmm.config.pmem",
    "ShareConfig": "vmm.config.share",
    "SnapshotConfig": "vmm.config.snapshot",
    "VfioConfig": "vmm.config.vfio",
    "WatchdogConfig": "vmm.config.watchdog",
    "GdbConfig": "vmm.config.gdb",
    "IPv4Interface": "ipaddress",
    "IPv6Interface": "ipaddress",
}
"""The types with a name and where they are: only those that a machine has are imported."""


def dumps(values: Mapping[str, object], translate: Callable[[Path], Path]) -> str:
    """Return *values* as JSON text; each `Path` in them, at any depth, goes through *translate*.

    Raises `TypeError` for a value of a type that is not in `MODULES`.
    """
    return json.dumps(
        {name: _encode(value, translate) for name, value in values.items()}, separators=(",", ":")
    )


def loads(text: str) -> dict[str, Any]:
    """Return the values in *text*, which `dumps` wrote.

    Raises `UserError`: the text is something else, or a configuration in it is not valid.
    """
    try:
        return {name: _decode(value) for name, value in json.loads(text).items()}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"--request: {text[:80]!r} is not a machine's configuration: {error}",
            "leave it out: pyvmm itself writes it for a lab host",
        ) from error


def _encode(value: object, translate: Callable[[Path], Path]) -> object:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is tuple:
        return [_encode(each, translate) for each in value]
    if isinstance(value, Path):
        return {"Path": str(translate(value))}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    name = type(value).__name__
    if name not in MODULES:
        raise TypeError(f"{value!r} has no JSON form")
    content: object
    if isinstance(value, Enum):
        content = value.value
    elif MODULES[name] == "ipaddress":
        content = str(value)
    else:
        content = {field: _encode(each, translate) for field, each in _given(value).items()}
    return {name: content}


def _given(value: Any) -> dict[str, object]:
    """Return the fields of a dataclass or a named tuple that are not at their default."""
    if dataclasses.is_dataclass(value):
        defaults = {field.name: field.default for field in dataclasses.fields(value)}
    else:
        defaults = {name: value._field_defaults.get(name, ...) for name in value._fields}
    fields = {name: getattr(value, name) for name in defaults}
    return {name: each for name, each in fields.items() if each != defaults[name]}


def _decode(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(_decode(each) for each in data)
    if not isinstance(data, dict):
        return data
    ((name, value),) = data.items()
    if name == "Path":
        return Path(value)
    if name == "bytes":
        return bytes.fromhex(value)
    kind = getattr(import_module(MODULES[name]), name)
    if isinstance(value, dict):
        return kind(**{field: _decode(each) for field, each in value.items()})
    return kind(value)
