"""Two emulated hosts with a network of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vmm.lab.host import profiles
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.profile import Profile

ADDRESSES = ("192.0.2.1", "192.0.2.2")
"""For documentation (RFC 5737): nobody's."""


@contextmanager
def linked(names: tuple[str, str], directory: Path) -> Iterator[tuple[Host, Host]]:
    """Yield hosts of two profiles, with a cable between them whose socket is in *directory*."""
    cable = f"addr.type=unix,addr.path={directory / 'cable'}"
    first = f"stream,id=link,server=on,{cable}"
    with (
        Host.start(with_card(names[0], first, 0), writable=[directory]) as one,
        Host.start(
            with_card(names[1], f"stream,id=link,server=off,{cable}", 1), writable=[directory]
        ) as other,
    ):
        yield one, other


def with_card(name: str, backend: str, number: int) -> Profile:
    """Return the profile *name* with another network card, behind which is *backend*."""
    profile = profiles.profile(name)
    mac = f"02:00:00:00:00:0{number}"
    find = f"card=$(dirname $(grep -l {mac} /sys/class/net/*/address))"
    return replace(
        profile,
        backends=(*profile.backends, ("-netdev", backend)),
        devices=(*profile.devices, f"virtio-net-pci,netdev=link,mac={mac},romfile="),
        setup=(*profile.setup, f"{find} && ifconfig ${{card##*/}} {ADDRESSES[number]}"),
    )
