"""Guests of a few instructions that talk to the host bridge (vmm/arm64/layout.py).

For `flat_guest`. In slot 1 is QEMU's edu, in slot 2, if anything, an NVMe disk.
"""

from __future__ import annotations

SLOT = """
.set SLOT1, 0x3f008000
.set SLOT2, 0x3f010000
.set BAR, 0x10000000
.set EDU_ID, 0x010000ed
.macro place bar=BAR
    ldr x10, =SLOT1
    ldr w1, =\\bar
    str w1, [x10, #0x10]
    mov w1, #6
    strh w1, [x10, #4]
.endm
.macro say letter
    mov w1, #\\letter
    ldr x2, =UART
    strb w1, [x2]
.endm
"""

UNPLUGGED = """
    place
    ldr x11, =BAR
    ldr w12, =EDU_ID
    ldr w0, [x11]
    cmp w0, w12
    b.ne .
    say 'Y'
there:
    ldr w0, [x11]
    cmp w0, w12
    b.eq there
    cmn w0, #1
    b.ne .
    ldr w0, [x10]
    cmn w0, #1
    b.ne .
    say 'G'
    psci SYSTEM_RESET
"""
AGAIN = """
    ldr x10, =SLOT1
    ldr w0, [x10]
    cmn w0, #1
    b.ne first
    psci SYSTEM_OFF
first:
"""

RESETS = """
.set MEMORY, 0x41000000
    place
    ldr x11, =BAR
    ldr w12, [x11, #4]      // edu cannot be reset: how often we were here
    cmp w12, #3
    b.eq done
    ldr x13, =MEMORY
    ldr x14, =0x1122334455667788
    add x14, x14, x12
    ldr x0, [x13]           // power-on memory is zero, what devices wrote included
    cbnz x0, .
    ldr x0, [x13, #0x1000]
    cbnz x0, .
    str x14, [x13]
    dsb sy
    mov x15, #0x40000       // its buffer
    str x13, [x11, #0x80]
    str x15, [x11, #0x88]
    mov x0, #8
    str x0, [x11, #0x90]
    mov x0, #1
    str x0, [x11, #0x98]
    bl wait
    add x16, x13, #0x1000
    str x15, [x11, #0x80]
    str x16, [x11, #0x88]
    mov x0, #3
    str x0, [x11, #0x98]
    bl wait
    ldr x0, [x16]
    cmp x0, x14
    b.ne .
    say 'D'
    add w12, w12, #1
    mvn w12, w12
    str w12, [x11, #4]
    psci SYSTEM_RESET
wait:
    ldr x0, [x11, #0x98]
    tbnz x0, #0, wait
    ret
done:
    mvn w12, wzr
    str w12, [x11, #4]
    psci SYSTEM_OFF
"""

HOSTILE = """
    place
    adr x20, stop
    mov x1, #1
    adr x2, reader
    psci CPU_ON
    cbnz x0, .
    mov w21, #100
toggle:                     // memory goes and comes under the other CPU's accesses
    strh wzr, [x10, #4]
    mov w1, #2
    strh w1, [x10, #4]
    subs w21, w21, #1
    b.ne toggle
    ldr w22, =0x40000000    // its BAR over memory, the UART, the host bridge
    bl move
    ldr w22, =0x09000000
    bl move
    ldr w22, =0x3f000000
    bl move
    ldr x13, =SLOT2         // the disk's, in the same place as edu's
    ldr w1, =BAR
    str w1, [x13, #0x10]
    str wzr, [x13, #0x14]
    mov w1, #6
    strh w1, [x13, #4]
    ldr w22, =BAR + 0x100000
    bl move
    ldr x14, =BAR + 0x2000  // its MSI-X table full of nonsense, and switched on
    mov w1, #0x80000000
    ldr w15, =0x40000000
    mov w16, #32
fill:
    str w15, [x14]
    str wzr, [x14, #4]
    str w16, [x14, #8]
    str wzr, [x14, #12]
    add x14, x14, #16
    subs w16, w16, #1
    b.ne fill
    ldrb w17, [x13, #0x34]
find:
    add x18, x13, x17
    ldrb w1, [x18]
    cmp w1, #0x11
    b.eq found
    ldrb w17, [x18, #1]
    cbz w17, .
    b find
found:
    mov w1, #0x8000
    strh w1, [x18, #2]
    mov w21, #4
messages:                   // off and on
    strh wzr, [x18, #2]
    mov w1, #0x8000
    strh w1, [x18, #2]
    subs w21, w21, #1
    b.ne messages
    mov w1, #1
    str w1, [x20]
    ldr w1, =BAR + 0x100000
    str w1, [x10, #0x10]
    ldr x11, =BAR + 0x100000
    ldr w12, =EDU_ID
    ldr w0, [x11]
    cmp w0, w12
    b.ne .
    say 'K'
    psci SYSTEM_OFF
move:
    str w22, [x10, #0x10]
    ldr w0, [x10, #0x10]
    ret
reader:
    ldr x11, =BAR
    ldr x10, =SLOT1
    adr x20, stop
again:
    ldr w0, [x11]
    str w0, [x11, #4]
    ldr w0, [x11, #0x2000]
    ldr w1, [x20]
    cbz w1, again
    b .
.ltorg
stop:
    .word 0
"""
