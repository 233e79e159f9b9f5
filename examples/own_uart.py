"""Your own UART: a function answers the guest's loads and takes its stores.

    pyvmm lab exec fwb -- python3 examples/own_uart.py

Register 0 takes a byte, register 1 says whether there is room. This one has room every third time.
"""

import struct
import tempfile
from pathlib import Path

import vmm

UART, DATA, READY = 0x0B00_0000, 0, 1

CODE = struct.pack(
    "<11I",
    0xD2A16001,  # movz  x1, #0x0b00, lsl #16
    0x10000142,  # adr   x2, text
    0x38401440,  # next: ldrb  w0, [x2], #1
    0x340000A0,  #       cbz   w0, off
    0x39400423,  # wait: ldrb  w3, [x1, #1]      READY
    0x34FFFFE3,  #       cbz   w3, wait
    0x39000020,  #       strb  w0, [x1]          DATA
    0x17FFFFFB,  #       b     next
    0xD2B08000,  # off:  movz  x0, #0x8400, lsl #16
    0xF2800100,  #       movk  x0, #0x8          PSCI SYSTEM_OFF
    0xD4000002,  #       hvc   #0
)

said, asked = bytearray(), 0

with vmm.program():
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory) / "guest"
        image.write_bytes(CODE + b"A UART of eleven lines.\n\0")
        with vmm.Machine(image, memory="64M") as machine:

            @machine.on_mmio(range(UART, UART + 0x1000))
            def uart(access: vmm.Access) -> int | None:
                """Take a byte, or tell whether there is room for one."""
                global asked  # noqa: PLW0603  (this program has one UART)
                if access.value is not None:
                    said.append(access.value)
                    return None
                asked += 1
                return int(asked % 3 == 0)

            machine.start()
            machine.wait(timeout=60)

    print(said.decode(), end="")
    print(f"It was asked {asked} times for {len(said)} bytes.")
