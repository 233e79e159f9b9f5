"""Run in a lab host: machines of ``import vmm`` in this process.

    library.py DIRECTORY-OF-ECHO DIRECTORY-OF-DEVICE

Each directory has a guest.bin: `flat_guest.ECHO`, and DEVICE of tests/lab/test_library.py.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import vmm

PATIENCE = 60.0
UART = 0x0B00_0000


def echo(guest: Path) -> None:
    """Talk, pause, look, go on."""
    with vmm.Machine(guest, memory="64M") as machine:
        machine.start()
        machine.console.expect("ready:")
        machine.pause()
        assert machine.state == "paused"
        assert 0x4008_0000 <= machine.vcpus[0].registers["pc"] < 0x4008_1000
        assert machine.memory[0x4008_0000:0x4008_0004] != bytes(4)
        machine.resume()
        machine.console.send("hello\4")
        machine.console.expect("hello")
        assert machine.wait(PATIENCE) == "powered-off"


def device(guest: Path) -> None:
    """Answer accesses; a handler cannot pause its own vCPU, but stop the machine."""
    refused: list[str] = []
    with vmm.Machine(guest, memory="64M") as machine:

        @machine.on_mmio(range(UART, UART + 0x1000))
        def answer(access: vmm.Access) -> int:
            if not access.is_store:
                try:
                    machine.pause()
                except vmm.UserError as error:
                    refused.append(str(error))
            return access.size

        machine.start()
        assert machine.wait(PATIENCE) == "powered-off"
    assert len(refused) == 1, refused


def main() -> None:
    """Run both, and look what they leave behind."""
    before = threading.active_count()
    echo(Path(sys.argv[1]) / "guest.bin")
    device(Path(sys.argv[2]) / "guest.bin")
    assert threading.active_count() == before, threading.enumerate()
    print("all is well")  # noqa: T201


if __name__ == "__main__":
    main()
