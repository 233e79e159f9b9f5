"""The host bridge: configuration space by ECAM, and BARs on the guest's bus.

    ECAM        bus << 20 | device << 15 | function << 12 | register   (PCI Express 4.0, 7.2.2)
    windows     the guest physical addresses that BARs may have, and nothing else has

A BAR is mapped while the guest decodes it (command register) inside a window and it overlaps no
mapped BAR. So it is never over memory or another device, whatever the guest writes. A BAR that
cannot be mapped is an event. It is tried again whenever another BAR is unmapped, since firmware
and kernels may move BARs across each other.
"""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING, Final

from vmm.closeable import Closeable
from vmm.errors import UserError, VmmError
from vmm.events import Bounded
from vmm.pci import window
from vmm.pci.bar import Space
from vmm.pci.config import SIZE as FUNCTION_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from vmm.bus import MmioBus
    from vmm.events import Events
    from vmm.irq import InterruptLine
    from vmm.pci.bar import Bar
    from vmm.pci.function import PciFunction
    from vmm.pci.window import PciWindow

SLOTS: Final = 32
FIRST_SLOT: Final = 1
"""On real machines, device 0 of a root bus is the host bridge. Here the slot is empty."""


class PciHost(Closeable):
    """Own the functions attached to its one bus, the root bus. As a bus device it is its ECAM.

    *fixed* are the windows for 32-bit memory and I/O; `place` adds one for 64-bit memory. *line*
    returns the interrupt line of a slot.
    """

    def __init__(
        self,
        bus: MmioBus,
        fixed: Sequence[PciWindow],
        line: Callable[[int], InterruptLine],
        events: Events,
    ) -> None:
        self.windows: tuple[PciWindow, ...] = ()
        self.functions: dict[int, PciFunction] = {}
        """By slot."""
        self._bus = bus
        self._line = line
        self._events = events
        self._lock = RLock()
        self._bounded: dict[str, Bounded] = {}  # by function: one must not silence another
        for each in fixed:
            self._open(each)

    # What it is made of

    def attach(self, function: PciFunction) -> int:
        """Attach *function* to the next free slot, own it, and return the slot.

        To be called before `place`. Raises `UserError` if all slots are taken; *function* is then
        still the caller's.
        """
        slot = FIRST_SLOT + len(self.functions)
        if slot == SLOTS:
            raise UserError(
                f"{function.name}: there are no more than {SLOTS - FIRST_SLOT} PCI devices",
                "leave some out",
            )
        function.attached(self, slot, self._line(slot))
        self.functions[slot] = function
        return slot

    def place(self, above: int, limit: int) -> int:
        """Add the window for 64-bit BARs between guest physical addresses *above* and *limit*.

        Return its end, or *above* if it is not needed. Raises `UserError` if the BARs fit in no
        window.
        """
        wide = self._bars(Space.MEMORY64)
        if not wide:
            self._check(Space.MEMORY32, self._bars(Space.MEMORY32))
            return above
        found = window.high(wide, above, limit)
        narrow = self._bars(Space.MEMORY32) + ([] if found else wide)
        self._check(Space.MEMORY32, narrow)
        if found is None:
            return above
        self._open(found)
        return found.addresses.end

    def _open(self, new: PciWindow) -> None:
        """Add a window. Where no BAR is, reads return ones: nobody claims them (master abort)."""
        self.windows += (new,)
        self._bus.fill(*new.addresses, 0xFF)

    def _bars(self, space: Space) -> list[Bar]:
        return [bar for _, bar in self._all() if bar.space is space]

    def _check(self, space: Space, bars: list[Bar]) -> None:
        room = sum(each.addresses.size for each in self.windows if each.space is space)
        if not window.fits(bars, room):
            largest = max(bars, key=lambda bar: bar.size)
            name = next(function.name for function, bar in self._all() if bar is largest)
            raise UserError(
                f"{name}: its BAR {largest.index} of {largest.size:#x} bytes has no place in the "
                "guest's physical addresses",
                "this host's KVM has too few address bits, or RAM leaves too few: use less "
                "--memory",
            )

    def _all(self) -> Iterator[tuple[PciFunction, Bar]]:
        for function in self.functions.values():
            for bar in function.bars:
                yield function, bar

    # ECAM, as the bus sees it

    def read(self, offset: int, size: int) -> int:
        """Return a register; ones if there is no function, or for an invalid access (7.2.2)."""
        function = self._find(offset, size)
        if function is None:
            return (1 << 8 * size) - 1
        with self._lock:
            return function.read_config(offset % FUNCTION_SIZE, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register. BARs are mapped accordingly when this returns."""
        function = self._find(offset, size)
        if function is not None:
            with self._lock:
                function.write_config(offset % FUNCTION_SIZE, size, value)
                self._settle(function)

    def _find(self, offset: int, size: int) -> PciFunction | None:
        number, register = divmod(offset, FUNCTION_SIZE)
        slot, part = divmod(number, 8)
        if part or size > 4 or register % size:
            return None
        return self.functions.get(slot)

    # BARs

    def alone(self) -> AbstractContextManager[object]:
        """Return the lock that keeps vCPUs out of configuration space: for several changes."""
        return self._lock

    def settle(self, function: PciFunction) -> None:
        """Map *function*'s BARs as `decoded` says, after a change that no guest wrote."""
        with self._lock:
            self._settle(function)

    def _settle(self, function: PciFunction) -> None:
        freed = False
        for bar in function.bars:
            wanted = function.decoded(bar)
            if wanted != bar.refused:
                bar.refused = None
            if bar.base is not None and bar.base != self._place_of(bar, wanted):
                self._unmap(bar)
                freed = True
        for bar in function.bars:
            if bar.base is None and bar.refused is None:
                self._map(function, bar)
        if freed:
            for other, bar in self._all():
                if bar.refused is not None:
                    self._map(other, bar)

    def _place_of(self, bar: Bar, address: int | None) -> int | None:
        """Return the guest physical address of *bar* at bus *address*; None outside all windows."""
        if address is None:
            return None
        for each in self.windows:
            if (each.space is Space.IO) is (bar.space is Space.IO):
                base = each.translate(address, bar.size)
                if base is not None:
                    return base
        return None

    def _map(self, function: PciFunction, bar: Bar) -> None:
        wanted = function.decoded(bar)
        if wanted is None:
            return
        base = self._place_of(bar, wanted)
        if base is None:
            because = "it is in no window of the host bridge"
            self._refuse(function, bar, wanted, "" if bar.is_question(wanted) else because)
            return
        try:
            self._bus.attach(base, bar.size, bar.device)
        except ValueError:
            self._refuse(function, bar, wanted, "another BAR is there")
            return
        bar.base, bar.refused = base, None
        try:
            bar.on_map(base)
        except VmmError as error:
            self._complain("pci-bar-trapped", function, bar, wanted, str(error))

    def _unmap(self, bar: Bar) -> None:
        if bar.base is not None:
            bar.on_unmap()
            self._bus.detach(bar.base)
            bar.base = None

    def _refuse(self, function: PciFunction, bar: Bar, address: int, because: str) -> None:
        if bar.refused is None and because:
            self._complain("pci-bar-refused", function, bar, address, because)
        bar.refused = address

    def _complain(
        self, event: str, function: PciFunction, bar: Bar, address: int, because: str
    ) -> None:
        events = self._bounded.setdefault(function.name, Bounded(self._events))
        events.emit(
            event,
            device=function.name,
            bar=bar.index,
            address=address,
            size=bar.size,
            because=because,
        )

    # Life

    def reset(self) -> None:
        """Reset all functions to power-on state and unmap their BARs. No vCPU may run."""
        with self._lock:
            for function in self.functions.values():
                function.reset()
                self._settle(function)

    def close(self) -> None:
        """Unmap all BARs and close the functions. No VM may have them. Idempotent."""
        with self._lock:
            for _, bar in self._all():
                self._unmap(bar)
            while self.functions:
                _, function = self.functions.popitem()
                function.close()
