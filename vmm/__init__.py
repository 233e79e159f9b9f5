"""pyvmm: a userspace virtual machine monitor on KVM for arm64 hosts.

``import vmm`` for programs that drive machines: vmm/library/README.md. What is not in `__all__` may
change.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.config import MachineConfig
    from vmm.errors import GuestError, HostError, UserError, VmmError
    from vmm.library.command import Command
    from vmm.library.interact import interact
    from vmm.library.lab import Lab
    from vmm.library.machine import Access, Console, Machine
    from vmm.library.program import program
    from vmm.library.transcript import NotSaidError

__all__ = [
    "Access",
    "Command",
    "Console",
    "GuestError",
    "HostError",
    "Lab",
    "Machine",
    "MachineConfig",
    "NotSaidError",
    "UserError",
    "VmmError",
    "interact",
    "program",
]

_HOMES = {
    "Access": "vmm.library.machine",
    "Command": "vmm.library.command",
    "Console": "vmm.library.machine",
    "GuestError": "vmm.errors",
    "HostError": "vmm.errors",
    "Lab": "vmm.library.lab",
    "Machine": "vmm.library.machine",
    "MachineConfig": "vmm.config",
    "NotSaidError": "vmm.library.transcript",
    "UserError": "vmm.errors",
    "VmmError": "vmm.errors",
    "interact": "vmm.library.interact",
    "program": "vmm.library.program",
}
"""Where each name is: none is imported before it is asked for, as ``pyvmm run`` asks for none."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'vmm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
