"""A machine that runs already, as `vmm.library.machine.Machine` drives it: for `pyvmm shell`."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from vmm.errors import UserError
from vmm.library.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmm.config import MachineConfig
    from vmm.library.engine import Listener
    from vmm.loop import Loop
    from vmm.machine.machine import Machine
    from vmm.machine.virtio_devices import MakeDevice

LATE: Final = "use a program of the library (import vmm) for that"


class RunningEngine(Calls):
    """*machine*, whose *loop* runs in the thread that constructs this. It is somebody else's.

    *typists* take what is sent to a console, by its name; in the loop's thread.
    """

    def __init__(
        self, machine: Machine, loop: Loop, typists: Mapping[str, Callable[[bytes], object]]
    ) -> None:
        super().__init__()
        self._machine = machine
        self._loop = loop
        self._thread = threading.current_thread()
        self._state = "running"
        self._typists = typists

    def engine(
        self, _config: MachineConfig, _listener: Listener, _devices: Sequence[MakeDevice]
    ) -> RunningEngine:
        """Return this: it is the place of the one machine."""
        return self

    def start(self) -> None:
        """Raise `UserError`: it was started."""
        raise UserError("the machine was started before")

    def send(self, port: str, data: bytes) -> None:
        """Send bytes to a console."""
        self._call(lambda: self._typists[port](data))

    def claim(self, _hook: int, _base: int, _size: int) -> None:
        """Raise `UserError`: devices come before the start."""
        raise UserError("a machine that runs gets no device", LATE)

    def watch_exits(self) -> None:
        """Raise `UserError`: exits are watched from the start."""
        raise UserError("exits are watched from the start", LATE)

    def close(self) -> None:
        """Do nothing: the machine goes on."""
