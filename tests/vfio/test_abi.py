"""The VFIO and iommufd ABIs that we compile are those of the system's headers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vmm._native import lib
from vmm.vfio.ioctls import ContainerIoctl, DeviceIoctl, GroupIoctl, IommufdIoctl

CDEFS = Path(__file__).parents[2] / "cdefs"
COMPILERS = ["gcc", "aarch64-linux-gnu-gcc"]


def compile_text(compiler: str, text: str, *flags: str) -> str:
    """Return the compiler's messages for *text*."""
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    command = [compiler, "-Wall", "-Wextra", "-Werror", f"-I{CDEFS}", *flags]
    done = subprocess.run(
        [*command, "-fsyntax-only", "-xc", "-"],
        input=text,
        text=True,
        capture_output=True,
        check=False,
    )
    return done.stderr


@pytest.mark.parametrize("compiler", COMPILERS)
def test_our_header_agrees_with_the_systems(compiler: str) -> None:
    assert compile_text(compiler, '#include "vfio_abi.h"\n') == ""


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("VFIO_DEVICE_BIND_IOMMUFD", "_IO(VFIO_TYPE, VFIO_BASE + 17)"),
        ("IOMMU_IOAS_MAP", "_IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_UNMAP)"),
    ],
)
def test_a_wrong_number_in_our_header_would_be_noticed(
    compiler: str, name: str, wrong: str
) -> None:
    text = f'#include "vfio_abi.h"\n#define {name} {wrong}\n'
    assert name in compile_text(compiler, text)


def test_ioctl_numbers_are_the_kernels() -> None:
    assert lib.VFIO_GET_API_VERSION == 0x3B64
    assert lib.VFIO_DEVICE_GET_REGION_INFO == 0x3B6C
    assert lib.VFIO_DEVICE_BIND_IOMMUFD == 0x3B76
    assert lib.VFIO_DEVICE_ATTACH_IOMMUFD_PT == 0x3B77
    assert lib.IOMMU_IOAS_MAP == 0x3B85


@pytest.mark.parametrize("ioctls", [ContainerIoctl, GroupIoctl, DeviceIoctl, IommufdIoctl])
def test_each_ioctl_has_the_headers_name_and_number(
    ioctls: type[ContainerIoctl | GroupIoctl | DeviceIoctl | IommufdIoctl],
) -> None:
    for ioctl in ioctls:
        assert ioctl == getattr(lib, ioctl.name)
