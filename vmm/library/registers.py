"""A vCPU's registers by their names in the Arm ARM, and what is in their fields."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from vmm.arm64.register_fields import fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.library.engine import Engine


class Registers(MutableMapping[str, int]):
    """One vCPU's registers, as `vmm.arm64.register_names` names them. The machine must be paused.

    Raises `UserError` for a machine that runs or a name that is none, `KvmError` for a register
    that this vCPU has not.
    """

    def __init__(self, engine: Engine, vcpu: int) -> None:
        self._engine, self._vcpu = engine, vcpu

    def __getitem__(self, name: str) -> int:
        return self._engine.get_register(self._vcpu, name)

    def __setitem__(self, name: str, value: int) -> None:
        self._engine.set_register(self._vcpu, name, value)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name}: a register stays")

    def __iter__(self) -> Iterator[str]:
        return iter(self._engine.registers(self._vcpu))

    def __len__(self) -> int:
        return len(self._engine.registers(self._vcpu))

    def fields(self, name: str) -> dict[str, int | str]:
        """Return register *name*'s fields with their values; see `vmm.arm64.register_fields`."""
        return fields(name, self[name])


class Vcpu:
    """One vCPU of a machine."""

    def __init__(self, engine: Engine, number: int) -> None:
        self.number = number
        self.registers = Registers(engine, number)
