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
"""Try *misdeed*, print the class of the resulting exception as one byte, and power off."""

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

COUNT = """
.set CPUS, {cpus}
.set COUNTERS, 0x41000000
    mov x19, #1
start:
    mov x1, x19
    adr x2, count
    mov x3, x19
    psci CPU_ON
    cbnz x0, .
    add x19, x19, #1
    cmp x19, #CPUS
    b.ne start
    mov x0, #0
count:
    ldr x4, =COUNTERS
    add x4, x4, x0, lsl #6
    mov x5, #0
again:
    add x5, x5, #1
    isb
    mrs x6, cntvct_el0
    stp x5, x6, [x4]
    b again
"""
"""*cpus* vCPUs, at most 16, that count for ever: at 0x41000000 and each 64 bytes from there are a
vCPU's count of rounds and the virtual counter as it last saw it."""

# UART registers: CR 0x30 (on), IMSC 0x38 (receive interrupts), FR 0x18, DR 0.
ECHO = """
    ldr x2, =UART
    mov w1, #0x301
    str w1, [x2, #0x30]
    mov w1, #0x50
    str w1, [x2, #0x38]
    adr x3, ready
greet:
    ldrb w1, [x3], #1
    cbz w1, listen
    strb w1, [x2]
    b greet
listen:
    ldr w1, [x2, #0x18]
    tbnz w1, #4, listen  // RXFE
    ldr w1, [x2]
    strb w1, [x2]
    cmp w1, #4
    b.ne listen
    psci SYSTEM_OFF
ready:
    .asciz "ready:"
"""
"""Echo input; end at a ^D."""

FLOOD = """
    ldr x2, =UART
    mov w1, #0x301
    str w1, [x2, #0x30]
    ldr w3, ={size}
    mov w4, #1
    ldr w5, =1103515245
    ldr w6, =12345
send:
    ldr w1, [x2, #0x18]
    tbnz w1, #5, send    // TXFF
    mov w7, #16          // half the FIFO, as drivers do
byte:
    madd w4, w4, w5, w6
    lsr w1, w4, #16
    strb w1, [x2]
    sub w7, w7, #1
    cbnz w7, byte
    subs w3, w3, #16
    b.ne send
    psci SYSTEM_OFF
"""
"""Send the *size* bytes (a multiple of 16) of `flood`, and power off at once."""


def flood(size: int) -> bytes:
    """Return the bytes that FLOOD sends."""
    sent, state = bytearray(), 1
    for _ in range(size):
        state = (state * 1103515245 + 12345) & 0xFFFF_FFFF
        sent.append(state >> 16 & 0xFF)
    return bytes(sent)


def assemble(directory: Path, source: str) -> Path:
    """Assemble *source* into a flat binary in *directory*; return its path."""
    text, linked, flat = (directory / f"guest.{suffix}" for suffix in ("S", "elf", "bin"))
    text.write_text(f"{PSCI}\n.globl _start\n_start:\n{source}\n")
    compiler = ["aarch64-linux-gnu-gcc", "-nostdlib", "-static", "-Wl,-Ttext=0x40080000"]
    subprocess.run([*compiler, "-Wl,--build-id=none", "-o", linked, text], check=True)
    subprocess.run(["aarch64-linux-gnu-objcopy", "-O", "binary", linked, flat], check=True)
    return flat
