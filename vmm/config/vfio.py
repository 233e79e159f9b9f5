"""``--vfio``: device assignment, a whole PCI device of the host for the guest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.config.bar import CACHE_CHOICES
from vmm.config.bdf import parse_bdf
from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm.config.bar import BarConfig

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
    found = VfioConfig(parse_bdf(address, "--vfio"))
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


def check_devices(devices: Sequence[VfioConfig], bars: Iterable[BarConfig]) -> None:
    """Raise `UserError` if a device is passed twice, or its back end is not that of the others."""
    whole: set[str] = set()
    for device in devices:
        bdf = parse_bdf(device.bdf, "--vfio")
        if bdf in whole:
            raise UserError(f"--vfio {bdf}: it is there twice", "leave one out")
        whole.add(bdf)
        if device.backend != devices[0].backend:
            raise UserError(
                f"--vfio {bdf},backend={device.backend}: all devices share one address "
                f"space, and {devices[0].bdf} has backend={devices[0].backend}",
                "say the same of each",
            )
    for bar in bars:
        if (bdf := parse_bdf(bar.bdf, "--bar")) in whole:
            raise UserError(
                f"--bar {bdf}: --vfio has all of this device", "leave one of the two out"
            )
