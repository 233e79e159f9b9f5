"""Breakpoints and watchpoints of a debugger, and what of them vCPUs have in registers.

A software breakpoint is a BRK in guest memory: there is no limit, but a guest that loads its code
afterwards, or that is reset, loses it. The others are in debug registers, which all vCPUs share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.arm64.debug_registers import LOAD, STORE, Counts, breakpoint_pair, watchpoint_pairs
from vmm.errors import UserError
from vmm.kvm.vcpu import DebugPair, GuestDebug

if TYPE_CHECKING:
    from vmm.arm64.translation import Regime
    from vmm.debug.memory import DebugMemory

BRK: Final = 0xD420_0000.to_bytes(4, "little")
"""BRK #0. Kernels have other numbers for their own."""

ACCESSES: Final = {2: STORE, 3: LOAD, 4: LOAD | STORE}
"""gdb's kinds of watchpoints (Z2, Z3, Z4)."""
NAMES: Final = {2: "watch", 3: "rwatch", 4: "awatch"}

SOFT, HARD = 0, 1
"""gdb's kinds of breakpoints (Z0, Z1)."""


class Soft(NamedTuple):
    """A BRK: the guest physical address where it is, and the instruction that it replaced."""

    physical: int
    original: bytes


class Watch(NamedTuple):
    """A watchpoint: gdb's kind, the address, the size in bytes."""

    kind: int
    address: int
    size: int


class Breakpoints:
    """Breakpoints and watchpoints of one debugger; *counts* is what a vCPU has registers for."""

    def __init__(self, memory: DebugMemory, counts: Counts) -> None:
        self._memory = memory
        self._counts = counts
        self._soft: dict[int, Soft] = {}
        self._hard: set[int] = set()
        self._watches: list[Watch] = []

    def insert(self, kind: int, address: int, size: int, regime: Regime) -> None:
        """Insert one, which may be there already; *kind* is gdb's number, 0 to 4.

        Raises `UserError` if the registers do not suffice, `GuestError` if there is no memory.
        """
        if kind == SOFT:
            self._insert_soft(address, regime)
        elif kind == HARD:
            self._hard.add(address)
            if len(self._hard) > self._counts.breakpoints:
                self._hard.discard(address)
                raise UserError(f"there are {self._counts.breakpoints} hardware breakpoints")
        elif (watch := Watch(kind, address, size)) not in self._watches:
            self._watches.append(watch)
            if len(self._watch_pairs()) > self._counts.watchpoints:
                self._watches.remove(watch)
                raise UserError(f"there are {self._counts.watchpoints} hardware watchpoints")

    def _insert_soft(self, address: int, regime: Regime) -> None:
        if address in self._soft:
            return
        physical = self._memory.locate(regime, address).address
        original = self._memory.read_physical(physical, len(BRK))
        self._memory.write_physical(physical, BRK)
        self._soft[address] = Soft(physical, original)

    def remove(self, kind: int, address: int, size: int) -> None:
        """Remove one, if it is there."""
        if kind == SOFT:
            if (soft := self._soft.pop(address, None)) is not None:
                self._restore(soft)
        elif kind == HARD:
            self._hard.discard(address)
        elif (watch := Watch(kind, address, size)) in self._watches:
            self._watches.remove(watch)

    def clear(self) -> None:
        """Remove all."""
        for soft in self._soft.values():
            self._restore(soft)
        self.forget_soft()
        self._hard.clear()
        self._watches.clear()

    def forget_soft(self) -> None:
        """Forget the BRKs: the memory that had them is discarded."""
        self._soft.clear()

    def _restore(self, soft: Soft) -> None:
        """Put the instruction back, unless the guest has written another one meanwhile."""
        if self._memory.read_physical(soft.physical, len(BRK)) == BRK:
            self._memory.write_physical(soft.physical, soft.original)

    def is_soft(self, physical: int) -> bool:
        """Return whether the instruction at *physical* is a BRK of this debugger's."""
        return any(soft.physical == physical for soft in self._soft.values())

    def watch_of(self, far: int) -> Watch | None:
        """Return the watchpoint of an access at *far*: the one that has it, or the nearest.

        An access that began before a watched byte reports an address outside of the watchpoint.
        """

        def distance(watch: Watch) -> int:
            return max(watch.address - far, far - (watch.address + watch.size - 1), 0)

        return min(self._watches, key=distance, default=None)

    def _watch_pairs(self) -> list[DebugPair]:
        return [
            pair
            for kind, address, size in self._watches
            for pair in watchpoint_pairs(address, size, ACCESSES[kind])
        ]

    def debug(self, *, step: bool) -> GuestDebug:
        """Return what a vCPU is to stop for; *step*: also after its next instruction."""
        return GuestDebug(
            step=step,
            trap_brk=bool(self._soft),
            breakpoints=tuple(breakpoint_pair(address) for address in sorted(self._hard)),
            watchpoints=tuple(self._watch_pairs()),
        )
