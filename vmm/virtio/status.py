"""The device status field and its state machine (VIRTIO 1.2, 2.1 and 3.1).

    0 --ACKNOWLEDGE--> --DRIVER--> --FEATURES_OK--> --DRIVER_OK--> live
                                   (if the device agrees)

A driver adds bits, one by one or several at once. It clears bits only by writing 0, which resets
the device. FAILED may come at any time. NEEDS_RESET is the device's.

DRIVER implies ACKNOWLEDGE: U-Boot does not write ACKNOWLEDGE again after it has reset the device
(2025.01, virtio_uclass_child_pre_probe), and nothing depends on that bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm._native import lib

if TYPE_CHECKING:
    from collections.abc import Callable

ACKNOWLEDGE: Final[int] = lib.VIRTIO_CONFIG_S_ACKNOWLEDGE
DRIVER: Final[int] = lib.VIRTIO_CONFIG_S_DRIVER
DRIVER_OK: Final[int] = lib.VIRTIO_CONFIG_S_DRIVER_OK
FEATURES_OK: Final[int] = lib.VIRTIO_CONFIG_S_FEATURES_OK
NEEDS_RESET: Final[int] = lib.VIRTIO_CONFIG_S_NEEDS_RESET
FAILED: Final[int] = lib.VIRTIO_CONFIG_S_FAILED

STEPS: Final = {
    0: ACKNOWLEDGE,
    ACKNOWLEDGE: DRIVER,
    ACKNOWLEDGE | DRIVER: FEATURES_OK,
    ACKNOWLEDGE | DRIVER | FEATURES_OK: DRIVER_OK,
}
"""For each state, the one bit that may come next."""

LIVE: Final = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK


def progress(status: int) -> int:
    """Return the bits of *status* that are steps of the initialization (3.1.1)."""
    return status & LIVE


def step(status: int, written: int, enter: Callable[[int], bool]) -> tuple[int, bool]:
    """Return the status after the driver wrote *written*, and whether the write was lawful.

    *enter* is called before each step with the step's bit. If it returns False, the device refuses
    the step: the bit stays clear for the driver to see (3.1.1, step 6). That is no driver error.
    """
    wanted = progress(written) | (ACKNOWLEDGE if written & DRIVER else 0)
    lawful = not progress(status) & ~wanted
    status |= written & FAILED
    while lawful and wanted & ~status:
        following = STEPS[progress(status)]
        if not wanted & following:
            lawful = False
        elif not enter(following):
            break
        else:
            status |= following
    return status, lawful
