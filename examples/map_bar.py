"""Map a BAR of a real device into a guest, at an address that we choose.

    pyvmm lab exec vfio -- sh -c '
        pyvmm vfio bind 0000:00:10.0 && python3 examples/map_bar.py 0000:00:10.0'

The device is QEMU's "edu": register 0 identifies it, register 4 answers what is stored, inverted.
The guest's loads and stores reach the device without an exit: there is a memory slot.
"""

import struct
import tempfile
from pathlib import Path

import vmm

BAR, REPORT = 0x1_0000_0000, 0x0B00_0000

CODE = struct.pack(
    "<11I",
    0xD2C00021,  # movz  x1, #1, lsl #32         the BAR
    0xD2A16002,  # movz  x2, #0x0b00, lsl #16    our report
    0xB9400020,  # ldr   w0, [x1]
    0xB9000040,  # str   w0, [x2]
    0x52824683,  # mov   w3, #0x1234
    0xB9000423,  # str   w3, [x1, #4]
    0xB9400420,  # ldr   w0, [x1, #4]
    0xB9000040,  # str   w0, [x2]
    0xD2B08000,  # movz  x0, #0x8400, lsl #16
    0xF2800100,  # movk  x0, #0x8                PSCI SYSTEM_OFF
    0xD4000002,  # hvc   #0
)

reports: list[int] = []

with vmm.program("BDF") as (bdf,):
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory) / "guest"
        image.write_bytes(CODE)
        with vmm.Machine(image, memory="64M", bar=f"{bdf}:0@{BAR:#x}") as machine:

            @machine.on_mmio(range(REPORT, REPORT + 4))
            def report(access: vmm.Access) -> None:
                """Note what the guest has read."""
                reports.append(access.value or 0)

            machine.start()
            machine.wait(timeout=60)

    print(f"the guest read {reports[0]:#010x}, stored 0x1234, read {reports[1]:#010x}")
    print("that is edu" if reports[0] & 0xFF == 0xED else "that is another device")
