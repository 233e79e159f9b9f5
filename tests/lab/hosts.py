"""The emulated hosts that tests share: their profiles, and which test runs in which.

A test takes its host from the fixture `lab_host`, by the name of a profile. Which one is known
before it runs: from its parameter ``profile``, from its marker ``profile``, or else it is fwb. So
tests can be sorted by profile, a host be started once, and ended when the next profile's turn
comes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm.lab.host import profiles
from vmm.lab.host.emulated_host import Host
from vmm.lab.kernel.flavour import BuiltKernel

if TYPE_CHECKING:
    import pytest

    from vmm.lab.host.profile import Profile

DEFAULT = "fwb"

_STOCK = profiles.profile("vfio")
_BUILT = profiles.profile("gh200")
HUGE_SIZE = 128 << 30
"""Bytes of a BAR of the profile "passthrough"."""

PROFILES: dict[str, Profile] = {
    **profiles.PROFILES,
    "passthrough": replace(
        _STOCK,
        name="passthrough",
        backends=(
            *_STOCK.backends,
            # Reserves nothing, and uses what is touched.
            ("-object", f"memory-backend-ram,id=huge,size={HUGE_SIZE},reserve=off"),
        ),
        devices=(
            *_STOCK.devices,
            "nec-usb-xhci,id=usb,addr=0x16,msix=off",
            "usb-kbd,bus=usb.0",
            "ivshmem-plain,addr=0x18,memdev=huge",
        ),
    ),
    # Its guests can have memory tagging.
    "mte": replace(
        _STOCK,
        name="mte",
        machine=(*_STOCK.machine, "mte=on"),
    ),
    # A GICv2m checks no device's messages.
    "unsafe": replace(_STOCK, name="unsafe", gic=2),
    "gh200-passthrough": replace(
        _BUILT,
        name="gh200-passthrough",
        backends=(_STOCK.backends[0],),
        devices=(
            *_BUILT.devices,
            "nvme,addr=0x11,serial=pyvmm,drive=disk",
            "edu,addr=0x12,dma_mask=0xffffffffff",
        ),
    ),
}
"""Those of `pyvmm lab`, and some with more devices."""

# Stock kernels first: those that are built here may still be under way.
_ORDER = sorted(PROFILES, key=lambda name: isinstance(PROFILES[name].kernel, BuiltKernel))


def profile_of(item: pytest.Item) -> str | None:
    """Return the name of the profile whose host a test shares, or None."""
    if "lab_host" not in getattr(item, "fixturenames", ()):
        return None
    parameters = getattr(item, "callspec", None)
    if parameters and "profile" in parameters.params:
        return str(parameters.params["profile"])
    marker = item.get_closest_marker("profile")
    return str(marker.args[0]) if marker else DEFAULT


def group_of(item: pytest.Item) -> str:
    """Return the name of the test's group: one worker of pytest-xdist runs all of a group."""
    profile = profile_of(item)
    # Most tests are fwb's, so workers share them file by file, each with a host of its own.
    return item.path.stem if profile in (None, DEFAULT) else str(profile)


def sort(items: list[pytest.Item]) -> None:
    """Put tests that share a host beside each other, and those that share none first."""
    items.sort(key=lambda item: _ORDER.index(name) if (name := profile_of(item)) else -1)


class SharedHost:
    """Own one host at a time: asking for another profile's ends the one before."""

    def __init__(self) -> None:
        self.wanted: str | None = None
        """The profile of the test that runs."""
        self._host: Host | None = None
        self._profile = ""

    def get(self, profile: str) -> Host:
        """Return the host of *profile*; start it if it is not the one that is up."""
        assert profile == self.wanted, f"mark the test: pytest.mark.profile({profile!r})"
        if self._host is None or self._profile != profile or not self._alive(self._host):
            self.close()
            self._host = Host.start(PROFILES[profile])
            self._profile = profile
        return self._host

    def close(self) -> None:
        """End the host that is up. Idempotent."""
        if self._host is not None:
            self._host.close()
        self._host = None

    @staticmethod
    def _alive(host: Host) -> bool:
        """Tell whether the emulator runs; if one test ended it, the next ones get a new host."""
        return host.record.qemu is not None and host.record.qemu.alive
