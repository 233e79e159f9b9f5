"""Errors that a device reports (PCIe AER)."""

from __future__ import annotations

import os

from tests.recorded import Recorded
from vmm.events import COMPLAINTS
from vmm.passthrough.devices import DeviceErrors


def test_errors_are_told_but_not_for_ever() -> None:
    """A guest that makes its device fail over and over does not fill the host's disk."""
    events = Recorded()
    errors = DeviceErrors("0000:01:00.0", events)
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        for _ in range(2 * COMPLAINTS):
            os.eventfd_write(fd, 1)
            errors.tell(fd)
        errors.tell(fd)  # somebody else has taken it
    finally:
        os.close(fd)
    told = events["vfio-device-error"]
    assert len(told) == COMPLAINTS
    assert told[0]["device"] == "0000:01:00.0"
