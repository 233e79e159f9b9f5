"""The device status field and its state machine (VIRTIO 1.2, 2.1 and 3.1).

    0 --ACKNOWLEDGE--> --DRIVER--> --FEATURES_OK--> --DRIVER_OK--> live
                                   (if we agree)

A driver adds bits, one after another or several at once, and takes none away but by writing 0,
which resets. FAILED may come at any time. NEEDS_RESET is the device's.

Who says DRIVER has acknowledged the device, whether he says so or not: U-Boot does not after its
reset of the device (2025.01, virtio_uclass_child_pre_probe), and nothing hangs on it.
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
"""What has been reached: the one bit that may come next."""

LIVE: Final = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK


def progress(status: int) -> int:
    """Return how far the driver has got: *status* without what is no step."""
    return status & LIVE


def step(status: int, written: int, enter: Callable[[int], bool]) -> tuple[int, bool]:
    """Return the status after the driver wrote *written*, and whether it may write that.

    *enter* is asked before each step, with its bit; False refuses it, which is no fault of the
    driver's: the bit then stays clear, for it to see (3.1.1, step 6).
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
