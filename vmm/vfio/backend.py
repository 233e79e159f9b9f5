"""Choose one of VFIO's two interfaces: iommufd where the host has all of it, else groups."""

from __future__ import annotations

import os
from enum import Enum
from typing import TYPE_CHECKING

from vmm.events import Events
from vmm.vfio.group import Container
from vmm.vfio.iommufd import Iommufd, device_node

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.vfio.function import HostFunction
    from vmm.vfio.iommu import Iommu
    from vmm.vfio.kvm_files import KvmFiles


class Backend(Enum):
    """An interface to devices and the IOMMU; ``AUTO`` is the better one that the host has."""

    AUTO = "auto"
    IOMMUFD = "iommufd"
    GROUP = "group"


def open_iommu(
    function: HostFunction,
    backend: Backend = Backend.AUTO,
    events: Events | None = None,
    kvm: KvmFiles | None = None,
) -> Iommu:
    """Open an I/O address space that *function* and other devices can be attached to.

    *function* is one that `check_assignable` accepts. *kvm* is told of the files of devices.
    Emits ``vfio-backend``: which interface it is, and why. Raises `HostError`.
    """
    missing = "" if backend is Backend.IOMMUFD else why_not_iommufd(function)
    if backend is Backend.GROUP:
        missing = "the group interface was asked for"
    chosen = Container if missing else Iommufd
    opened: Iommu = chosen(function.paths, kvm)
    (events or Events()).emit(
        "vfio-backend",
        device=function.bdf,
        backend=opened.name,
        because=missing or "the host has iommufd and a device file",
    )
    return opened


def why_not_iommufd(function: HostFunction) -> str:
    """Return what the host lacks for iommufd, or which file cannot be used; empty: nothing."""
    node = device_node(function)
    if node is None:
        return "the kernel makes no device file (Linux 6.6, CONFIG_VFIO_DEVICE_CDEV)"
    iommu = function.paths.dev / "iommu"
    if not iommu.exists():
        return f"there is no {iommu} (Linux 6.2, module iommufd)"
    group = function.paths.dev / "vfio" / str(function.iommu_group)
    if _usable(group):  # else neither is, and iommufd's error is the better one
        for needed in (iommu, node):
            if not _usable(needed):
                return f"{needed} is not ours to use"
    return ""


def _usable(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK)
