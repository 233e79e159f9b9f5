"""The arm64 boot protocol: where kernel, device tree and initrd go, and how the boot CPU starts.

Linux's Documentation/arch/arm64/booting.rst requires:

    RAM's base, up to 2 MiB --> +-------------+
               + text_offset    | kernel      |  image_size bytes: uninitialised data included
    2 MiB boundary -----------> | device tree |  at most 2 MiB, away from the kernel's blocks
    64 KiB boundary ----------> | initrd      |  in the same 32 GiB window as the kernel
                                +-------------+

Firmware in flash has all RAM to itself, and expects the device tree at the start of RAM.

The kernel is placed as low as possible, because kernels before 4.6 lose the RAM below them; the
device tree is near it, because those before 4.2 map no more than 512 MiB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm.address_range import AddressRange
from vmm.arm64 import layout
from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.arm64.image import Kernel

MIB = 1 << 20
GIB = 1 << 30
BLOCK = 2 * MIB
DTB_LIMIT = 2 * MIB
WINDOW = 32 * GIB
PAGE = 64 << 10
"""Bytes of the largest page a guest may use. An initrd aligned to it shares no page."""

PSTATE_EL1H = 0b0101
PSTATE_DAIF = 0xF << 6
PSTATE = PSTATE_DAIF | PSTATE_EL1H
"""EL1 with its own stack pointer; debug, SError, IRQ and FIQ masked (Arm ARM, C5.2)."""


class BootPlan(NamedTuple):
    """Where things go in guest physical memory.

    kernel    from the payload's first byte to the end of its uninitialised data; None: firmware in
              flash is started
    dtb       room for the device tree, which may be smaller
    initrd    exactly the initrd, or None
    """

    kernel: AddressRange | None
    dtb: AddressRange
    initrd: AddressRange | None = None

    @property
    def registers(self) -> Mapping[str, int]:
        """The boot CPU's registers by name. MMU and data cache are off, as they are at reset."""
        return {
            "x0": self.dtb.base,
            "x1": 0,
            "x2": 0,
            "x3": 0,
            "pc": layout.FLASH if self.kernel is None else self.kernel.base,
            "pstate": PSTATE,
        }


def plan(
    ram: AddressRange,
    kernel: Kernel,
    initrd_size: int = 0,
    *,
    dtb_size: int = DTB_LIMIT,
    initrd_name: str = "the initrd",
) -> BootPlan:
    """Place *kernel*, an initrd of *initrd_size* bytes and a device tree in *ram*.

    *dtb_size* bytes are reserved for the device tree, which is complete only once the initrd is
    placed. Raises UserError if something does not fit, with the RAM that would do.
    """
    if not 0 < dtb_size <= DTB_LIMIT:
        raise ValueError(f"a device tree of {dtb_size} bytes: Linux reads up to {DTB_LIMIT}")
    code = AddressRange(_up(ram.base, BLOCK) + kernel.text_offset, kernel.image_size)
    dtb = AddressRange(_up(code.end, BLOCK), dtb_size)
    if dtb.end > ram.end:
        raise _does_not_fit(f"{kernel.name}: the kernel ({_mib(code.size)} MiB)", ram, dtb.end)
    if not initrd_size:
        return BootPlan(code, dtb)
    initrd = AddressRange(_up(dtb.end, PAGE), initrd_size)
    if initrd.end > ram.end:
        what = f"{initrd_name}: the initrd ({_mib(initrd_size)} MiB)"
        raise _does_not_fit(what, ram, initrd.end)
    if initrd.end > code.base // GIB * GIB + WINDOW:
        raise UserError(
            f"{initrd_name}: the initrd ({_mib(initrd_size)} MiB) reaches beyond the "
            f"{WINDOW >> 30} GiB that Linux maps around its kernel",
            "use a smaller initrd and a disk",
        )
    return BootPlan(code, dtb, initrd)


def firmware_plan(ram: AddressRange) -> BootPlan:
    """Place the device tree for firmware at the start of *ram*, as edk2 and U-Boot expect."""
    return BootPlan(None, AddressRange(ram.base, min(DTB_LIMIT, ram.size)))


def _does_not_fit(what: str, ram: AddressRange, needed_end: int) -> UserError:
    # Twice what must be loaded, because unpacking an initramfs takes about that again.
    enough = 64
    while enough * MIB < 2 * (needed_end - ram.base):
        enough *= 2
    return UserError(
        f"{what} does not fit in {_mib(ram.size)} MiB of RAM", f"use --memory {enough}M"
    )


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _mib(size: int) -> int:
    return -(-size // MIB)
