"""A `MachineConfig` from options by name: the long options of ``pyvmm run``, with underscores.

    machine("Image", memory="2G", disk=["root.img,ro"], rng=True)

A value is the text that the command line takes; a flag is True, a path may be a `Path`, and a
number a number. An option that may be repeated takes one value or a sequence of them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmm.config import MachineConfig
from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable


def _is(kind: type) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise UserError(f"{name}: {value!r} is no {kind.__name__}", "pyvmm run --help has all")
        return value

    return check


def _one_of(*words: str) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if value not in words:
            raise UserError(f"{name}: there is no {value!r}", f"use {', '.join(words)}")
        return value

    return check


def _text(name: str, value: Any) -> str:
    return str(value if isinstance(value, Path) else _is(str)(name, value))


def _path(name: str, value: Any) -> Path:
    return Path(_text(name, value))


def _size(name: str, value: Any) -> int:
    from vmm.config.size import parse_size

    return parse_size(str(value), f"--{name}")


def _parser(name: str, module: str = "") -> Any:
    """Return ``parse_NAME``, for an option that is given: emulated, a module costs 10 ms."""
    return getattr(import_module(f"vmm.config.{module or name}"), f"parse_{name}")


def _one(name: str, value: Any) -> Any:
    return _parser(name, "firmware" if name == "flash" else name)(str(value))


def _each(name: str, value: Any) -> tuple[Any, ...]:
    return tuple(map(_parser(name), _texts(name, value)))


def _together(name: str, value: Any) -> Any:
    return _parser(f"{name}s", name)(_texts(name, value))


def _texts(name: str, value: Any) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str | Path) else tuple(value)
    return tuple(_text(name, each) for each in values)


def _balloon(name: str, value: Any) -> Any:
    wanted = name == "balloon"
    return _parser("balloon")(wanted, None if wanted else str(value))


OPTIONS: Final[dict[str, tuple[str, Callable[[str, Any], Any]]]] = {
    "image": ("image", _path),
    "firmware": ("firmware", _path),
    "flash": ("flash", _one),
    "initrd": ("initrd", _path),
    "cmdline": ("cmdline", _is(str)),
    "cpus": ("cpus", _is(int)),
    "cpu_baseline": ("cpu_baseline", _path),
    "memory": ("memory", _size),
    "no_reboot": ("reboot", lambda name, value: not _is(bool)(name, value)),
    "panic": ("panic", _one_of("exit", "ignore")),
    "bar": ("bars", _each),
    "memory_write_back": ("write_back", _is(bool)),
    "uapi": ("uapi", _one_of("auto", "mainline", "rfc", "vendor")),
    "uapi_profile": ("uapi_profile", _path),
    "coherency_sanitizer": ("sanitizer", _is(bool)),
    "memory_dump": ("memory_dump", _path),
    "verify": ("verify", _is(bool)),
    "rng": ("rng", _is(bool)),
    "disk": ("disks", _each),
    "net": ("nets", _together),
    "vsock": ("vsock", _one),
    "share": ("shares", _together),
    "vfio": ("vfio", _each),
    "transport": ("transport", _one_of("mmio", "pci")),
    "console": ("consoles", _each),
    "balloon": ("balloon", _balloon),
    "balloon_size": ("balloon", _balloon),  # after balloon, which it implies
    "pmem": ("pmems", _each),
    "gdb": ("gdb", _one),
    "watchdog": ("watchdog", _one),
    "snapshot": ("snapshot", _one),
    "restore": ("restore", _path),
    "incoming": ("incoming", _one),
}
"""Each option: the field of `MachineConfig` that it sets, and what makes the field's value."""


def machine(image: str | Path | None = None, /, **options: Any) -> MachineConfig:
    """Return the configuration that *options* describe. None and False are as if left out.

    Raises `UserError`: an unknown option, a value of the wrong kind, or parts that do not fit.
    """
    options = {"image": image, **options}
    for name in options.keys() - OPTIONS.keys():
        raise UserError(f"{name}: a machine has no such option", "pyvmm run --help lists them")
    fields: dict[str, Any] = {}
    for name, (field, parse) in OPTIONS.items():
        value = options.get(name)
        if value is None or value is False or (isinstance(value, list | tuple) and not value):
            continue
        fields[field] = parse(name, value)
    return MachineConfig(**fields)
