"""Addresses of PCI functions, as every option takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.config import MachineConfig
from vmm.config.bar import BarConfig, parse_bar
from vmm.config.bdf import parse_bdf
from vmm.config.vfio import VfioConfig, parse_vfio
from vmm.errors import UserError


@pytest.mark.parametrize(
    ("text", "bdf"),
    [
        ("0000:01:00.0", "0000:01:00.0"),
        ("01:00.0", "0000:01:00.0"),
        ("1:0.7", "0000:01:00.7"),
        ("0009:AB:1f.2", "0009:ab:1f.2"),
        ("10000:e1:00.0", "10000:e1:00.0"),
    ],
)
def test_addresses_are_made_whole(text: str, bdf: str) -> None:
    assert parse_bdf(text) == bdf
    assert parse_bar(f"{text}:4").bdf == bdf
    assert parse_vfio(f"{text},rom=on").bdf == bdf


@pytest.mark.parametrize(
    "text", ["", "01:00", "0000:01:20.0", "01:00.8", "../01:00.0", "1:2:3:4.0", "gpu", "0:1:0.0"]
)
def test_malformed_addresses_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"not the address.*such as 0000:01:00\.0"):
        parse_bdf(text)
    with pytest.raises(UserError, match=r"^--bar"):
        parse_bar(f"{text}:4")
    with pytest.raises(UserError, match=r"^--vfio"):
        parse_vfio(text)


@pytest.mark.parametrize("other", ["0000:0A:00.0", "0a:00.0", "A:0.0"])
def test_a_device_has_one_address_however_it_is_written(other: str) -> None:
    bdf = "0000:0a:00.0"
    for bar, vfio in ((other, bdf), (bdf, other)):
        with pytest.raises(UserError, match=f"--bar {bdf}: --vfio has all of this device"):
            MachineConfig(image=Path("x"), bars=(parse_bar(f"{bar}:4"),), vfio=(parse_vfio(vfio),))


def test_configurations_made_by_hand_are_compared_by_address_as_well() -> None:
    with pytest.raises(UserError, match="--vfio has all of this device"):
        MachineConfig(
            image=Path("x"), bars=(BarConfig("0a:00.0", 4),), vfio=(VfioConfig("0000:0A:00.0"),)
        )
