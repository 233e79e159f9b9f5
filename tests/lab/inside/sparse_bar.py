"""Run in a lab host: a machine with a PCI function whose BAR is large, sparse, and memory.

    sparse_bar.py SIZE CMDLINE IMAGE [INITRD]

Prints what the guest says; the last line is JSON: how long things took, in seconds, and what of
the BAR was written.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from vmm.closeable import Closeable
from vmm.config import MachineConfig
from vmm.events import Events
from vmm.kvm.slots import MemorySlot
from vmm.loop import Loop
from vmm.machine.machine import Machine
from vmm.memory import Mapping, Region
from vmm.pci.bar import Bar
from vmm.pci.function import Identity, PciFunction
from vmm.terminal.console import StdioConsole, standard_output

IDENTITY = Identity(0x1234, 0x5678, 0x05_80_00)


class Nothing:
    """Fail: every access hits the memory slot."""

    def read(self, offset: int, size: int) -> int:
        raise AssertionError(f"trapped: {size} bytes at {offset:#x}")

    def write(self, offset: int, size: int, value: int) -> None:
        raise AssertionError(f"trapped: {value:#x}, {size} bytes at {offset:#x}")


class Sparse(Closeable):
    """Own *size* bytes, mapped as a memory slot wherever the guest places the BAR."""

    def __init__(self, machine: SparseMachine, size: int) -> None:
        self._machine = machine
        self.mapping = Mapping.anonymous(size)
        self.slots: list[MemorySlot] = []
        self.seconds: list[float] = []
        self.bases: list[int] = []
        bar = Bar(0, size, Nothing(), on_map=self.on_map, on_unmap=self.on_unmap)
        self.function = PciFunction("sparse", IDENTITY, [bar])

    def on_map(self, base: int) -> None:
        began = time.perf_counter()
        slots = self._machine.space._slots
        assert slots is not None
        host = Region(base, self.mapping.view).host_address
        self.slots.append(slots.add(base, self.mapping.view.nbytes, host))
        self.seconds.append(time.perf_counter() - began)
        self.bases.append(base)

    def on_unmap(self) -> None:
        slots, slot = self._machine.space._slots, self.slots.pop()
        if slots is not None:
            slots.remove(slot)

    def close(self) -> None:
        self.mapping.close()


class SparseMachine(Machine):
    """A machine with such a function, whose BAR has *size* bytes."""

    def __init__(self, config: MachineConfig, loop: Loop, size: int) -> None:
        self.size = size
        super().__init__(config, loop, Events())

    def _add_virtio(self) -> None:
        assert self._root is not None
        self.sparse = Sparse(self, self.size)
        self._owned.enter_context(self.sparse)
        self._root.attach(self.sparse.function)
        self.windows = self._root.host


def main(size: int, cmdline: str, image: str, initrd: str | None = None) -> None:
    """Run the machine and print what happened as JSON."""
    config = MachineConfig(
        image=Path(image),
        initrd=Path(initrd) if initrd else None,
        cmdline=cmdline,
        memory=256 << 20,
        transport="pci",
    )
    began = time.perf_counter()
    with Loop() as loop, SparseMachine(config, loop, size) as machine:
        made = time.perf_counter() - began
        stdout = standard_output()
        with StdioConsole(loop, machine.output, machine.uart, stdin=None, stdout=stdout) as console:
            ending = machine.run()
            console.flush()
        sparse, window = machine.sparse, machine.windows.windows[-1]
        view = sparse.mapping.view
        found = {
            "ending": ending.value,
            "made": made,
            "mapped": sparse.seconds,
            "bases": sparse.bases,
            "window": list(window.addresses),
            "written": [view[at] for at in (0, size // 2, size - 1)],
        }
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    main(int(sys.argv[1], 0), *sys.argv[2:])
