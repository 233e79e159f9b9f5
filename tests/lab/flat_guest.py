"""Guests of a few instructions: flat binaries, assembled by the cross compiler.

They start at EL1 with the MMU off, at RAM's base + 0x80000 (vmm/arm64/boot.py).
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PSCI = """
.macro psci function
    ldr w0, =\\function
    hvc #0
.endm
.set SYSTEM_OFF, 0x84000008
.set SYSTEM_RESET, 0x84000009
.set CPU_ON, 0xc4000003
.set UART, 0x09000000
.set PVPANIC, 0x09020000
.set NOWHERE, 0x20000000
"""

CATCH = """
    adr x0, vectors
    msr vbar_el1, x0
    isb
    {misdeed}
    psci SYSTEM_RESET    // not reached: the access must fail
.balign 2048
vectors:
.skip 0x200              // an exception taken from this level, synchronous
    mrs x1, esr_el1
    lsr x1, x1, #26      // its class
    ldr x2, =UART
    strb w1, [x2]
    psci SYSTEM_OFF
"""
"""Tries *misdeed*, tells the class of the exception that it gets as one byte, and powers off."""

POWER_OFF = "psci SYSTEM_OFF"
RESET = "psci SYSTEM_RESET"
SPIN = "b ."
SLEEP = """
again:
    wfi
    b again
"""
LOST = """
    ldr x0, =NOWHERE     // there is nothing, nor are there exception vectors:
    br x0                // from now on it takes one exception after the other
"""
PANIC = """
    ldr x2, =PVPANIC
    mov w1, #1
    strb w1, [x2]
    b .
"""
UNCLAIMED = """
    ldr x2, =NOWHERE
    mov w1, #7
    str w1, [x2]         // dropped
    ldr w1, [x2]         // zero
    cbnz w1, .
    psci SYSTEM_OFF
"""
ALL_CPUS = """
.set CPUS, {cpus}
    mov x19, #1
start:
    and x1, x19, #15     // KVM puts sixteen CPUs into a cluster
    lsr x2, x19, #4
    orr x1, x1, x2, lsl #8
    adr x2, secondary
    mov x3, x19
    psci CPU_ON
    cbnz x0, .
    add x19, x19, #1
    cmp x19, #CPUS
    b.ne start
    adr x4, here
    mov x19, #1
wait:
    ldrb w5, [x4, x19]
    cbz w5, wait
    add x19, x19, #1
    cmp x19, #CPUS
    b.ne wait
    psci SYSTEM_OFF
secondary:
    adr x4, here
    mov w5, #1
    strb w5, [x4, x0]    // x0: what CPU_ON had in x3
asleep:
    wfi
    b asleep
.ltorg
here:
.skip 128
"""


def assemble(directory: Path, source: str) -> Path:
    """Return a flat binary of *source*, in *directory*."""
    text, linked, flat = (directory / f"guest.{suffix}" for suffix in ("S", "elf", "bin"))
    text.write_text(f"{PSCI}\n.globl _start\n_start:\n{source}\n")
    compiler = ["aarch64-linux-gnu-gcc", "-nostdlib", "-static", "-Wl,-Ttext=0x40080000"]
    subprocess.run([*compiler, "-Wl,--build-id=none", "-o", linked, text], check=True)
    subprocess.run(["aarch64-linux-gnu-objcopy", "-O", "binary", linked, flat], check=True)
    return flat
