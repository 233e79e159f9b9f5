"""``--vfio``: what can be written, and what it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.config import MachineConfig
from vmm.config.bar import BarConfig
from vmm.config.vfio import VfioConfig, parse_vfio
from vmm.errors import UserError

BDF = "0000:01:00.0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BDF, VfioConfig(BDF)),
        ("1:0.0", VfioConfig(BDF)),
        ("0001:1A:1f.7", VfioConfig("0001:1a:1f.7")),
        (f"{BDF},cache=require,bind", VfioConfig(BDF, cache="require", bind=True)),
        (f"{BDF},rom=on", VfioConfig(BDF, rom=True)),
        (f"{BDF},rom=off", VfioConfig(BDF)),
        (f"{BDF},rom=/tmp/gpu.rom", VfioConfig(BDF, rom=Path("/tmp/gpu.rom"))),
        (f"{BDF},backend=group", VfioConfig(BDF, backend="group")),
    ],
)
def test_a_device_and_its_options(text: str, expected: VfioConfig) -> None:
    assert parse_vfio(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not the address of a PCI device; write [domain:]bus:device.function"),
        ("eth0", "'eth0' is not the address of a PCI device"),
        ("01:00.8", "is not the address"),
        ("01:20.0", "is not the address"),
        (f"{BDF},cache=maybe", "cannot use 'cache=maybe'; options are cache=auto|require|forbid"),
        (f"{BDF},rom=", "cannot use 'rom='"),
        (f"{BDF},bind=yes", "cannot use 'bind=yes'"),
        (f"{BDF},", "cannot use ''"),
    ],
)
def test_what_cannot_be_is_said_with_what_can(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_vfio(text)
    assert str(error.value).startswith("--vfio")
    assert said in str(error.value)


def test_a_device_is_passed_whole_or_in_regions() -> None:
    with pytest.raises(UserError, match=r"--bar 0000:01:00.0: --vfio has all of this device"):
        MachineConfig(image=Path("x"), bars=(BarConfig(BDF, 0),), vfio=(VfioConfig(BDF),))


def test_a_device_is_passed_once() -> None:
    with pytest.raises(UserError, match=r"--vfio 0000:01:00.0: it is there twice"):
        MachineConfig(image=Path("x"), vfio=(VfioConfig(BDF), VfioConfig("1:0.0")))


def test_all_devices_have_one_back_end() -> None:
    other = VfioConfig("0000:02:00.0", backend="group")
    with pytest.raises(UserError, match=r"backend=group.*0000:01:00.0 has backend=auto"):
        MachineConfig(image=Path("x"), vfio=(VfioConfig(BDF), other))
