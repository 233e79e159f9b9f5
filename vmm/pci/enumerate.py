"""Place BARs as an operating system does, for a machine in which none runs.

Largest first in each window, so that they leave no gaps; 64-bit BARs in the 64-bit window if there
is one. A guest may place them elsewhere in the same windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm._native import lib
from vmm.pci.bar import COUNT, Space

if TYPE_CHECKING:
    from vmm.pci.bar import Bar
    from vmm.pci.host import PciHost


def enumerate_bars(host: PciHost) -> None:
    """Write addresses to the BARs of all functions of *host*, and have them decoded.

    Call it after `PciHost.place`, which saw to it that they fit. Expansion ROMs stay off.
    """
    found = [
        (function, bar)
        for function in host.functions.values()
        for bar in function.bars
        if bar.index < COUNT
    ]
    spaces = {window.space for window in host.windows}
    free = {window.space: window.bus_base for window in host.windows}
    for function, bar in sorted(found, key=lambda each: -each[1].size):
        space = bar.space if bar.space in spaces else Space.MEMORY32
        address = -(-free[space] // bar.size) * bar.size
        free[space] = address + bar.size
        at = (function.slot or 0) << 15
        _write_address(host, at, bar, address)
    decode = lib.PCI_COMMAND_IO | lib.PCI_COMMAND_MEMORY
    for function in host.functions.values():
        host.write(((function.slot or 0) << 15) + lib.PCI_COMMAND, 2, decode)


def _write_address(host: PciHost, at: int, bar: Bar, address: int) -> None:
    for half in range(0, bar.width, 4):
        host.write(at + bar.offset + half, 4, address >> 8 * half & 0xFFFF_FFFF)
