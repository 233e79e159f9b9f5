"""Trace a guest's exits: which registers cost it most while it boots.

    pyvmm lab exec fwb -- python3 examples/trace_exits.py guest.img

With `on_exit` every exit comes to Python, so the counts are whole, and the boot is slow. What is
not here costs no exit of the VMM's: the GIC and the timer are KVM's, doorbells are ioeventfds.
"""

from collections import Counter

import vmm
from vmm.arm64 import layout
from vmm.kvm.exits import Exit, MmioRead, MmioWrite

NAMES = {layout.UART: "UART", layout.RTC: "RTC", layout.PVPANIC: "pvpanic"}
SIZE = 0x1000

counts: Counter[tuple[str, str]] = Counter()


def place(address: int) -> str:
    """Return an address as a device and an offset."""
    base = address & -SIZE
    return f"{NAMES[base]}+{address - base:#05x}" if base in NAMES else f"{address:#x}"


with vmm.program("IMAGE") as (image,):
    with vmm.Machine(image, memory="512M", rng=True) as machine:

        @machine.on_exit
        def count(_vcpu: int, exit_: Exit) -> None:
            """Count one exit by its kind and its place."""
            where = place(exit_.address) if isinstance(exit_, MmioRead | MmioWrite) else ""
            counts[type(exit_).__name__, where] += 1

        machine.start()
        machine.console.expect(r"guest:\S*# ")
        machine.console.send("exit\n")
        machine.wait(timeout=300)

    print(f"{counts.total()} exits, most of them at these places:")
    for (kind, where), number in counts.most_common(8):
        print(f"{number:8} {kind:12} {where}")
