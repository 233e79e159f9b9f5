"""``--vfio``: device assignment, a whole PCI device of the host for the guest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.config.bar import CACHE_CHOICES, check_bars
from vmm.config.bdf import parse_bdf
from vmm.config.option import FLAG, Key, choice, parse_keys, split
from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def _rom(text: str) -> bool | Path:
    if not text:
        raise ValueError
    return {"on": True, "off": False}.get(text, Path(text))


KEYS: Final = {
    "cache": choice(*CACHE_CHOICES),
    "rom": Key(_rom),
    "bind": FLAG,
    "backend": choice(*BACKENDS),
}


def parse_vfio(text: str) -> VfioConfig:
    """Parse ``BDF[,cache=...][,rom=...][,bind][,backend=...]``. Raises `UserError`."""
    address, *parts = split(text.strip())
    usage = (
        f"options are cache={'|'.join(CACHE_CHOICES)}, rom=on|off|FILE, bind and "
        f"backend={'|'.join(BACKENDS)}"
    )
    bdf = parse_bdf(address, "--vfio")
    return VfioConfig(bdf, **parse_keys(f"--vfio {text}", parts, KEYS, usage))


def check_devices(devices: Sequence[VfioConfig], bars: Sequence[BarConfig]) -> None:
    """Raise `UserError` if what is passed does not fit together.

    A device is passed twice, its back end is not that of the others, or two of *bars* have one
    address.
    """
    check_bars(bars)
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
