"""Bind a device to a VFIO driver, and restore what it had: `bind` and `unbind`.

    bind     record | driver_override = vfio-pci | unbind the host's driver | probe
    unbind            unbind vfio-pci | driver_override as it was | bind the driver it had | forget

The record is written before anything is changed, so that `unbind` also undoes a `bind` that was
cut short. Modules that were loaded stay loaded.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from vmm import broker
from vmm.broker.server import Debt
from vmm.config.bdf import parse_bdf
from vmm.errors import HostError, UserError
from vmm.vfio import drivers
from vmm.vfio.assignability import check_unused
from vmm.vfio.function import HostFunction
from vmm.vfio.host_paths import HOST, HostPaths

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Binding:
    """The record of a device: the driver and driver_override (empty: none) that it had."""

    bdf: str
    driver: str | None
    driver_override: str

    @classmethod
    def load(cls, bdf: str, paths: HostPaths) -> Binding | None:
        """Return the record of a device; None if there is none. Raises `HostError`."""
        path = _record(bdf, paths)
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise HostError(f"{path} cannot be read: {error}", "remove it") from error

    def save(self, paths: HostPaths) -> None:
        """Write the record, atomically. Raises `HostError`."""
        path = _record(self.bdf, paths)
        temporary = path.with_suffix(".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(asdict(self)))
            temporary.replace(path)
        except OSError as error:
            raise HostError(f"cannot write {path}: {error.strerror}", _hint(error)) from error


def bind(address: str, driver: str | None = None, paths: HostPaths = HOST) -> str:
    """Bind the device at *address* to *driver*, by default the VFIO driver made for it.

    Return the driver's name. A device that has that driver already is left alone. Raises
    `UserError` or `HostError`; the device then has what it had.
    """
    function = HostFunction.find(address, paths)
    if function.iommu_group is None and not _may_get_a_group(function):
        raise _no_iommu(function)
    target = drivers.ready(driver or drivers.wanted_module(function), paths)
    drivers.check_vfio(target)
    with _alone(paths):
        return _bind(function, target)


def _may_get_a_group(function: HostFunction) -> bool:
    """Return whether the kernel may make *function*'s IOMMU group when a driver is bound to it.

    Linux 6.12 does so on arm64 (drivers/base/dd.c, really_probe; drivers/of/device.c,
    of_dma_configure_id): that a function which never had a driver has no group says nothing.
    """
    iommus = function.paths.sys / "class/iommu"
    return function.driver is None and iommus.is_dir() and any(iommus.iterdir())


def _no_iommu(function: HostFunction) -> HostError:
    return HostError(
        f"{function.bdf} is behind no IOMMU, and VFIO takes no such device",
        "switch the IOMMU on in firmware and kernel",
    )


def _rebind_in_a_group(function: HostFunction, target: str) -> None:
    try:
        _rebind(function, target)
    except HostError as error:
        if function.iommu_group is None:
            raise _no_iommu(function) from error
        raise
    if function.iommu_group is None:
        raise _no_iommu(function)


def _bind(function: HostFunction, target: str) -> str:
    paths = function.paths
    if function.driver == target:
        return target
    if function.driven_by_vfio:
        check_unused(function)
    now = Binding(function.bdf, function.driver, function.driver_override)
    is_first = Binding.load(function.bdf, paths) is None
    if is_first:
        now.save(paths)
    try:
        _write(function.path / "driver_override", target)
        _rebind_in_a_group(function, target)
    except BaseException:
        _restore(function, now)
        if is_first:
            _record(function.bdf, paths).unlink()
        raise
    return target


def unbind(address: str, paths: HostPaths = HOST) -> str | None:
    """Undo `bind`; return the driver that the device has again, if it had one.

    Raises `UserError` if pyvmm did not bind the device or a program has it open, `HostError` if
    the host refuses.
    """
    with _alone(paths):
        return _unbind(parse_bdf(address), paths)


def _unbind(bdf: str, paths: HostPaths) -> str | None:
    was = Binding.load(bdf, paths)
    if was is None:
        function = HostFunction.find(bdf, paths)
        raise UserError(
            f"{bdf} was not bound by pyvmm; its driver is {function.driver or 'none'}",
            f"/sys/bus/pci/devices/{bdf}/driver/unbind takes it from that driver",
        )
    function = HostFunction(bdf, paths)
    if function.path.exists():
        check_unused(function)
        _restore(function, was)
    _record(bdf, paths).unlink(missing_ok=True)
    return was.driver


@contextmanager
def borrowed(address: str, driver: str | None = None, paths: HostPaths = HOST) -> Iterator[str]:
    """Bind the device to a VFIO driver for the ``with`` block; yield the driver's name.

    A device that a VFIO driver has already is left alone, before and after. The device must be
    closed when the block ends.
    """
    function = HostFunction.find(address, paths)
    if function.driven_by_vfio and driver in (None, function.driver):
        yield function.driver or ""
        return
    # A sealed machine cannot unbind it, nor one that was killed.
    lender = broker.current(DEBTS) if paths is HOST else None
    if lender is None or "vfio" not in lender.kinds:
        got = bind(address, driver, paths)
        try:
            yield got
        finally:
            unbind(address, paths)
        return
    debt, got = lender.borrow("vfio", address, driver or "")
    try:
        yield got
    finally:
        lender.pay(debt)


def borrow(address: str, driver: str) -> str:
    """Bind a device to *driver* or, if that is empty, to the VFIO driver made for it (a debt)."""
    return bind(address, driver or None)


def give_back(address: str, _driver: str, asked: bool) -> None:  # noqa: FBT001  (a debt)
    """Unbind a borrowed device. Of a machine that was killed the kernel may still hold it open."""
    deadline = time.monotonic() + RELEASE
    while True:
        try:
            unbind(address)
        except HostError:
            if asked or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


RELEASE: Final = 10.0
"""Seconds in which the kernel closes the files of a killed process."""

DEBTS: Final = {"vfio": Debt(give_back, borrow)}
"""For `vmm.broker.current`: the broker binds devices for a machine, and unbinds them."""


def bound(paths: HostPaths = HOST) -> list[str]:
    """Return the addresses of the devices that `unbind` can give back."""
    directory = paths.run / "vfio"
    return sorted(path.stem for path in directory.glob("*.json")) if directory.is_dir() else []


@contextmanager
def _alone(paths: HostPaths) -> Iterator[None]:
    """Lock binding and unbinding: one program at a time. Raises `HostError`."""
    path = paths.run / "vfio/lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}", _hint(error)) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _restore(function: HostFunction, was: Binding) -> None:
    if function.driver_override != was.driver_override:
        # A lone newline clears it (driver_set_override).
        _write(function.path / "driver_override", was.driver_override or "\n")
    if function.driver != was.driver:
        _rebind(function, was.driver)


def _rebind(function: HostFunction, driver: str | None) -> None:
    """Unbind the device from its driver, and bind it to *driver*, if any."""
    if function.driver:
        _write(function.path / "driver/unbind", function.bdf)
    if driver is None:
        return
    directory = function.paths.drivers / driver
    if not directory.exists():
        raise HostError(
            f"{function.bdf}: its driver {driver} is no longer loaded", f"modprobe {driver}"
        )
    _write(directory / "bind", function.bdf)
    if function.driver != driver:
        raise HostError(f"{function.bdf}: {driver} did not take it", "the kernel's log says why")


def _write(path: Path, text: str) -> None:
    """Write to a file in sysfs by one write(2), whose error is the kernel's answer."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        what = f"cannot write {text.strip()!r} to {path}: {error.strerror}"
        raise HostError(what, _hint(error)) from error


def _hint(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "binding drivers takes root"
    return "the kernel's log (dmesg) may say why"


def _record(bdf: str, paths: HostPaths) -> Path:
    return paths.run / "vfio" / f"{bdf}.json"
