"""Whether a device can be assigned, and what is in the way.

The kernel answers EPERM or EBUSY in many cases. What sysfs and /proc show tells them apart.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm.errors import HostError, UserError
from vmm.vfio.function import HostFunction
from vmm.vfio.host_paths import HOST

if TYPE_CHECKING:
    from vmm.vfio.host_paths import HostPaths


def find_assignable(address: str, paths: HostPaths = HOST) -> HostFunction:
    """Return the function at *address*. Raises as `check_assignable` and `HostFunction.find` do."""
    function = HostFunction.find(address, paths)
    check_assignable(function)
    return function


def check_assignable(function: HostFunction) -> None:
    """Check a device before anything of it is opened.

    Raises `HostError` if no IOMMU translates its DMA, `UserError` if its driver is not one of
    VFIO's.
    """
    if function.iommu_group is None:
        raise HostError(
            f"{function.bdf} is behind no IOMMU (it has no iommu_group): a guest that owns it "
            "could reach all of the host's memory",
            "switch the IOMMU on in firmware and kernel (Arm: SMMU in the IORT; x86: "
            "intel_iommu=on, or AMD-Vi; the lab: a profile with an SMMU, such as vfio)",
        )
    if not function.driven_by_vfio:
        driver = function.driver
        raise UserError(
            f"{function.bdf} belongs to the host's driver {driver}, not to one of VFIO's"
            if driver
            else f"{function.bdf} has no driver, and needs one of VFIO's",
            f"`pyvmm vfio bind {function.bdf}` gives it to VFIO, unbind undoes that",
        )


def obstacle(function: HostFunction) -> HostError | None:
    """Return the error that names who uses the device or its group; None if nobody is found."""
    if found := function.group_obstacles:
        named = ", ".join(f"{other.bdf} ({other.driver})" for other in found)
        return HostError(
            f"IOMMU group {function.iommu_group} of {function.bdf} is not viable: other devices "
            f"in it belong to host drivers: {named}",
            "bind those to VFIO as well (`pyvmm vfio bind`), or unbind their drivers: the IOMMU "
            "cannot keep a group's devices apart",
        )
    if holders := users(function):
        return HostError(
            f"{function.bdf} is in use by {', '.join(holders)}",
            "a device, and its IOMMU group, belong to one program at a time",
        )
    return None


def check_unused(function: HostFunction) -> None:
    """Raise `UserError` if a program has the device open: unbinding would wait for it."""
    if holders := users(function):
        raise UserError(f"{function.bdf} is in use by {', '.join(holders)}", "end that first")


def users(function: HostFunction) -> list[str]:
    """Return the other processes that have the device or its group open, if /proc shows them."""
    paths = function.paths
    nodes = {str(paths.dev / "vfio" / str(function.iommu_group))}
    if name := function.vfio_name:
        nodes.add(str(paths.dev / "vfio/devices" / name))
    return [
        f"process {pid} ({_name(paths, pid)})"
        for pid in _processes(paths)
        if pid != os.getpid() and _holds(paths, pid, nodes)
    ]


def _processes(paths: HostPaths) -> list[int]:
    return sorted(int(path.name) for path in paths.proc.iterdir() if path.name.isdecimal())


def _holds(paths: HostPaths, pid: int, nodes: set[str]) -> bool:
    directory = paths.proc / str(pid) / "fd"
    try:
        for name in os.listdir(directory):  # noqa: PTH208  (thousands of them: no Path for each)
            try:
                if os.readlink(f"{directory}/{name}") in nodes:  # noqa: PTH115
                    return True
            except OSError:
                continue  # closed meanwhile
    except OSError:
        pass  # ended, or not ours to look at
    return False


def _name(paths: HostPaths, pid: int) -> str:
    try:
        return (paths.proc / str(pid) / "comm").read_text().strip()
    except OSError:
        return "ended"
