"""``--vfio``: a PCI device of the host, whole, for the guest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from vmm.config.bar import CACHE_CHOICES
from vmm.errors import UserError

BDF: Final = re.compile(
    r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{1,2}):([01]?[0-9a-f])\.([0-7])", re.IGNORECASE
)
BACKENDS: Final = ("auto", "iommufd", "group")


class VfioConfig(NamedTuple):
    """One device, in full: *bdf* is domain:bus:device.function.

    cache    auto, require or forbid: see `vmm.coherence.policy`
    rom      whether the guest sees the device's expansion ROM, or the one in this file
    bind     have it bound to a VFIO driver first, and given back at the end
    backend  which of VFIO's interfaces: auto, iommufd or group
    """

    bdf: str
    cache: str = "auto"
    rom: bool | Path = False
    bind: bool = False
    backend: str = "auto"


def parse_vfio(text: str) -> VfioConfig:
    """Return what ``BDF[,cache=...][,rom=...][,bind][,backend=...]`` means. Raises `UserError`."""
    address, *options = text.strip().split(",")
    match = BDF.fullmatch(address)
    if match is None:
        raise UserError(
            f"--vfio: {address!r} is not the address of a PCI device",
            "write domain:bus:device.function in hexadecimal, such as 0000:01:00.0",
        )
    domain, bus, device, function = (int(part or "0", 16) for part in match.groups())
    found = VfioConfig(f"{domain:04x}:{bus:02x}:{device:02x}.{function}")
    for option in options:
        found = _with(found, option, text)
    return found


def _with(found: VfioConfig, option: str, text: str) -> VfioConfig:
    name, equals, value = option.partition("=")
    if option == "bind":
        return found._replace(bind=True)
    if name == "cache" and value in CACHE_CHOICES:
        return found._replace(cache=value)
    if name == "backend" and value in BACKENDS:
        return found._replace(backend=value)
    if name == "rom" and equals and value:
        return found._replace(rom={"on": True, "off": False}.get(value, Path(value)))
    raise UserError(
        f"--vfio {text}: cannot use {option!r}",
        f"options are cache={'|'.join(CACHE_CHOICES)}, rom=on|off|FILE, bind and "
        f"backend={'|'.join(BACKENDS)}",
    )
