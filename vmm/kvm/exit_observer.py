"""Count why a vCPU left the guest, and which addresses it accessed: by cdefs/observe.c.

The C run loop counts; this reads. A vCPU without an observer is not counted, and pays for one
test of a pointer an exit (`scripts/bench exits` compares).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

KNOWN: Final = (
    "UNKNOWN",
    "EXCEPTION",
    "IO",
    "HYPERCALL",
    "DEBUG",
    "HLT",
    "MMIO",
    "SHUTDOWN",
    "FAIL_ENTRY",
    "INTR",
    "INTERNAL_ERROR",
    "SYSTEM_EVENT",
    "ARM_NISV",
    "DIRTY_RING_FULL",
    "MEMORY_FAULT",
    "ARM_SEA",
)
NAMES: Final[dict[int, str]] = {getattr(lib, f"KVM_EXIT_{name}"): name for name in KNOWN}
"""Names of exit reasons by number: KVM_EXIT_ without the prefix."""

KICK: Final = "kick"
FAILURE: Final = "KVM_RUN failed"


def reason_name(reason: int) -> str:
    """Return the name of exit reason *reason*, or its number as text."""
    return NAMES.get(reason, str(reason))


class Block(NamedTuple):
    """Accesses to [base, base + size), by which instruction, and how many C has answered."""

    base: int
    size: int
    loads: int
    stores: int
    answered: int


class ExitCounts(NamedTuple):
    """The exits of one vCPU since it is observed.

    reasons    by name: KVM_EXIT_* without the prefix, `KICK`, `FAILURE`
    blocks     MMIO exits by 512 bytes of addresses
    elsewhere  MMIO exits at addresses for which the table has no room
    """

    reasons: dict[str, int]
    blocks: list[Block]
    elsewhere: int

    @property
    def total(self) -> int:
        """How often KVM_RUN has returned."""
        return sum(self.reasons.values())


class ExitObserver:
    """The counters of one vCPU; see `Vcpu.observe`. It may go on with the next vCPU of that id."""

    def __init__(self) -> None:
        self.c: Any = ffi.new("struct pyvmm_exit_observer *")

    def counts(self) -> ExitCounts:
        """Return the counters. Thread-safe; those of a running vCPU may be one exit apart."""
        reasons = dict(self._reasons())
        elsewhere = self.c.elsewhere
        return ExitCounts(reasons, sorted(self._blocks()), elsewhere.loads + elsewhere.stores)

    def _reasons(self) -> Iterator[tuple[str, int]]:
        by_number = [(reason_name(number), count) for number, count in enumerate(self.c.reasons)]
        for name, count in (*by_number, (KICK, self.c.kicks), (FAILURE, self.c.failures)):
            if count:
                yield name, count

    def _blocks(self) -> Iterator[Block]:
        size = 1 << lib.PYVMM_BLOCK_SHIFT
        for entry in self.c.blocks:
            if entry.number:
                base = (entry.number - 1) * size
                yield Block(base, size, entry.loads, entry.stores, entry.answered)
