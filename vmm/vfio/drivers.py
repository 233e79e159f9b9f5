"""The VFIO driver for a device: a variant made for it, or plain vfio-pci.

A variant driver lists its devices in module aliases that start with vfio_pci: instead of pci:, so
that nothing loads it automatically (PCI_DRIVER_OVERRIDE_DEVICE_VFIO in <linux/pci.h>).
"""

from __future__ import annotations

import os
import subprocess
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from vmm.errors import HostError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.vfio.function import HostFunction
    from vmm.vfio.host_paths import HostPaths

PLAIN: Final = "vfio-pci"
_PREFIX: Final = "vfio_pci:"
_MODPROBE: Final = "modprobe"


def wanted_module(function: HostFunction) -> str:
    """Return the module whose alias matches the device most closely, by default vfio-pci."""
    name = function.modalias.replace("pci:", _PREFIX, 1)
    fitting = [
        (pattern.count("*"), module)
        for pattern, module in _aliases(function.paths)
        if fnmatchcase(name, pattern)
    ]
    return min(fitting, default=(0, PLAIN))[1]


def _aliases(paths: HostPaths) -> Iterator[tuple[str, str]]:
    """Yield (pattern, module) of the running kernel's modules, loadable and built in."""
    directory = paths.lib / "modules" / os.uname().release
    try:
        for line in (directory / "modules.alias").read_text().splitlines():
            if line.startswith(f"alias {_PREFIX}"):
                _, pattern, module = line.split(maxsplit=2)
                yield pattern, module
    except OSError:
        pass  # a kernel without modules
    try:
        entries = (directory / "modules.builtin.modinfo").read_bytes().split(b"\0")
    except OSError:
        return
    for entry in entries:  # module.alias=pattern
        key, _, pattern = entry.decode(errors="replace").partition("=")
        module, _, kind = key.partition(".")
        if kind == "alias" and pattern.startswith(_PREFIX):
            yield pattern, module


def ready(module: str, paths: HostPaths) -> str:
    """Load *module* if it is not loaded, and return the name of its PCI driver.

    *module* may also be the driver's name. Raises `HostError` if there is no such driver.
    """
    if driver := _driver(module, paths):
        return driver
    said = _load(module)
    if driver := _driver(module, paths):
        return driver
    raise HostError(
        f"this host has no driver {module}: {said}",
        "its kernel needs CONFIG_VFIO_PCI (module vfio-pci), or the variant driver asked for",
    )


def _driver(module: str, paths: HostPaths) -> str | None:
    if (paths.drivers / module).exists():
        return module
    directory = paths.sys / "module" / module.replace("-", "_") / "drivers"
    if directory.is_dir():
        for path in sorted(directory.iterdir()):  # pci:vfio-pci
            bus, _, driver = path.name.partition(":")
            if bus == "pci":
                return driver
    return None


def _load(module: str) -> str:
    """Load *module*; return modprobe's message."""
    try:
        done = subprocess.run([_MODPROBE, module], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{_MODPROBE}: {error.strerror}"
    return done.stderr.strip().replace("\n", " ") or f"{_MODPROBE} says nothing"


def check_vfio(driver: str) -> None:
    """Raise `UserError` unless *driver* is one of VFIO's: all of their names contain vfio."""
    if "vfio" not in driver:
        raise UserError(
            f"{driver} is not a VFIO driver", f"leave --driver out, or name one such as {PLAIN}"
        )
