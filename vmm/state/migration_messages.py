"""What the two ends of a live migration say to each other.

    source                                 destination
      Offer     what the guest has seen  ->
                                         <-  Answer    this host can show it; the machine is made
      pages, Round, pages, Round...      ->
      pages, Rest    the guest is paused ->
                                         <-  Ready     all of the state is in place
      Go        the source gives up      ->
                                         <-  Running   the guest runs

Either may send `Failed` at any time before Go; the guest then stays at the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from vmm.state.machine_state import MachineState  # noqa: TC001  (typed_json reads the annotations)
from vmm.state.manifest import DiskFile  # noqa: TC001
from vmm.state.visible_cpu import VisibleCpu  # noqa: TC001
from vmm.typed_json import Hex  # noqa: TC001

FORMAT: Final = "pyvmm migration"
VERSION: Final = 1
"""The version of the stream; a destination reads no other."""


@dataclass(frozen=True)
class Memory:
    """Guest RAM: first guest physical address, bytes, bytes of a page on the stream."""

    base: Hex
    size: int
    page: int


@dataclass(frozen=True)
class Offer:
    """A machine that wants to move.

    cpu          what the guest was shown of the host
    machine      the configuration, as `vmm.config.codec` writes it
    ledger       what each range of guest memory is promised, as `Entry.as_json` writes it
    connections  how many there will be; this one counts
    token        `Join` has the same
    """

    format: str
    version: int
    cpu: VisibleCpu
    machine: Any
    memory: Memory
    ledger: Any
    connections: int
    token: str


@dataclass(frozen=True)
class Join:
    """Another connection of the migration *token*: number *index*, from 1 on."""

    token: str
    index: int


@dataclass(frozen=True)
class Answer:
    """The destination takes the machine; its own CPU and ledger."""

    cpu: VisibleCpu
    ledger: Any


@dataclass(frozen=True)
class Round:
    """The pages of round *number*, from 0 on, were sent; on each connection.

    After the *last* one this connection has no more pages.
    """

    number: int
    last: bool


@dataclass(frozen=True)
class Rest:
    """The rest: the guest is paused, all its pages were sent, and this is its state."""

    state: MachineState
    disks: tuple[DiskFile, ...]


@dataclass(frozen=True)
class Ready:
    """The state is in place. *maintained* bytes were cleaned and invalidated after the write."""

    maintained: int


@dataclass(frozen=True)
class Go:
    """The source gives the guest up."""


@dataclass(frozen=True)
class Running:
    """The guest runs since *time*, in seconds since 1970 by the destination's clock."""

    time: float


@dataclass(frozen=True)
class Failed:
    """The sender gives up."""

    because: str
    remedy: str


NAMES: Final[dict[type, str]] = {
    Offer: "offer",
    Join: "join",
    Answer: "answer",
    Round: "round",
    Rest: "rest",
    Ready: "ready",
    Go: "go",
    Running: "running",
    Failed: "failed",
}
