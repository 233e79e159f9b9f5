"""What drives a machine: the calls of `Engine`, the answers to `Listener`.

    Machine --calls--> LocalEngine    a machine in this process; its loop has a thread
            <--tells--      ^
            --calls--> LabEngine --JSON lines--> serve, in a lab host: a LocalEngine there

All that goes either way is a number, a text, bytes, or lists of them: it can be sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.errors import VmmError

CALLS = frozenset(
    {
        "start",
        "pause",
        "resume",
        "step",
        "reset",
        "stop",
        "state",
        "read",
        "write",
        "registers",
        "get_register",
        "set_register",
        "send",
        "claim",
        "watch_exits",
    }
)
"""The methods of `Engine` that may be called from elsewhere."""


class Engine(Protocol):
    """One machine. Thread-safe. Raises `VmmError` for what fails."""

    def start(self) -> None:
        """Power on."""

    def pause(self) -> None:
        """Hold the machine still: `vmm.machine.pause`."""

    def resume(self) -> None:
        """Undo one `pause`."""

    def step(self, vcpu: int) -> None:
        """Let one vCPU of a paused machine execute one instruction, while the others wait."""

    def reset(self) -> None:
        """Begin another power cycle."""

    def stop(self) -> None:
        """End the machine."""

    def state(self) -> str:
        """Return ``new``, ``running``, ``paused`` or ``ended``."""

    def read(self, address: int, size: int) -> bytes:
        """Return guest memory."""

    def write(self, address: int, data: bytes) -> None:
        """Write guest memory."""

    def registers(self, vcpu: int) -> Sequence[str]:
        """Return the names of a vCPU's registers."""

    def get_register(self, vcpu: int, name: str) -> int:
        """Return a register."""

    def set_register(self, vcpu: int, name: str, value: int) -> None:
        """Set a register."""

    def send(self, port: str, data: bytes) -> None:
        """Send bytes to a console: ``serial`` or ``virtio``."""

    def claim(self, hook: int, base: int, size: int) -> None:
        """Answer accesses to guest physical addresses by `Listener.access`."""

    def watch_exits(self) -> None:
        """Tell each exit to `Listener.exit`. Before `start`."""

    def close(self) -> None:
        """End the machine, and release what it has. Idempotent."""


class Listener(Protocol):
    """Who hears of a machine. Each method is called in a thread of the engine's."""

    def output(self, port: str, data: bytes) -> None:
        """Take what the guest sent on a console."""

    def event(self, fields: Mapping[str, Any]) -> None:
        """Take an event."""

    def access(self, hook: int, address: int, size: int, value: int | None) -> int:
        """Answer a load (*value* is None), or take a store; the result is then of no use."""

    def exit(self, vcpu: int, kind: str, fields: Sequence[Any]) -> None:
        """Take an exit: the name and the fields of a type of `vmm.kvm.exits`."""

    def ended(self, how: str, error: VmmError | None) -> None:
        """Take the end of the machine. Nothing else follows."""
