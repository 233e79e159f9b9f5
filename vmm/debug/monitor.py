"""gdb's ``monitor`` commands: what pyvmm knows and the protocol has no packet for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.arm64 import layout
from vmm.arm64.register_names import name_of
from vmm.coherence import chart
from vmm.errors import VmmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.debug.debugger import Debugger
    from vmm.machine.machine import Machine

COMMANDS: Final = {
    "help": "list these commands",
    "map": "show the guest physical address space, with what it is owed",
    "physical on|off": "take addresses as guest physical ones, or as virtual ones",
    "registers [TEXT]": "show registers of this vCPU whose name has TEXT in it",
    "reset": "reset the machine, and stop it before its first instruction",
    "translate ADDRESS": "show where a virtual address is, by this vCPU's tables",
}


class Monitor:
    """Answer ``monitor`` commands about *machine*."""

    def __init__(self, debugger: Debugger, machine: Machine) -> None:
        self._debugger = debugger
        self._machine = machine

    def answer(self, line: str, vcpu: int) -> list[str]:
        """Carry out *line* with vCPU *vcpu* selected; return lines for the user."""
        word, *rest = line.split() or ["help"]
        commands: dict[str, Callable[[list[str], int], list[str]]] = {
            "help": self._help,
            "map": self._map,
            "physical": self._physical,
            "registers": self._registers,
            "reset": self._reset,
            "translate": self._translate,
        }
        if word not in commands:
            return [f"{word}: there is no such command; monitor help lists them"]
        try:
            return commands[word](rest, vcpu)
        except VmmError as error:
            return [str(error)]

    def _help(self, _words: list[str], _vcpu: int) -> list[str]:
        return [f"monitor {command:18} {what}" for command, what in COMMANDS.items()]

    def _map(self, _words: list[str], _vcpu: int) -> list[str]:
        return list(chart.table(self._machine.ledger(), layout.REGISTERS, chart.WIDE))

    def _physical(self, words: list[str], _vcpu: int) -> list[str]:
        if words not in (["on"], ["off"]):
            return ["write monitor physical on, or monitor physical off"]
        self._debugger.memory.physical = words == ["on"]
        return [f"addresses are {'physical' if words == ['on'] else 'virtual'} now"]

    def _registers(self, words: list[str], vcpu: int) -> list[str]:
        cpu = self._debugger.vcpu(vcpu)
        named = sorted((name_of(register), register) for register in cpu.get_reg_list())
        return [
            f"{name:20} {cpu.get_one_reg(register):#x}"
            for name, register in named
            if all(word.lower() in name.lower() for word in words)
        ]

    def _reset(self, _words: list[str], _vcpu: int) -> list[str]:
        self._debugger.reset()
        return ["the machine is reset; maintenance flush register-cache shows its new registers"]

    def _translate(self, words: list[str], vcpu: int) -> list[str]:
        try:
            address = int(words[0], 0)
        except (IndexError, ValueError):
            return ["write monitor translate ADDRESS, such as 0xffff800080000000"]
        regime = self._debugger.registers(vcpu).regime()
        found = self._debugger.memory.locate(regime, address & (1 << 64) - 1)
        if not found.size:
            return [f"{address:#x} is physical: stage 1 is off"]
        size, descriptor = found.size >> 10, found.descriptor
        where = f"{address:#x} is {found.address:#x}"
        return [f"{where}: level {found.level}, {size} KiB, descriptor {descriptor:#x}"]
