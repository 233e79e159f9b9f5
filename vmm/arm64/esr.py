"""Exception syndromes: what ESR_EL1 says about the instruction at ELR_EL1.

Source: Arm ARM D24.2 (ESR_ELx: EC, and the ISS of aborts) and D1.3 (preferred return addresses).
"""

from __future__ import annotations

from typing import Final

INSTRUCTION_ABORT: Final = 0x21
"""EC: an instruction abort, from EL1 to EL1."""
DATA_ABORT: Final = 0x25
"""EC: a data abort, from EL1 to EL1."""

EXTERNAL_ABORT: Final = 0x10
ALIGNMENT_FAULT: Final = 0x21
"""ISS[5:0] of an abort: IFSC and DFSC."""

CAUSED_BY_AN_INSTRUCTION: Final = frozenset(
    {
        0x00,  # unknown reason: the bytes are no instruction, or none that may be executed
        0x07,  # SIMD or floating point, trapped
        0x0A,  # other instructions, trapped: LD64B, ST64B
        0x0D,  # branch target: the instruction is no landing pad for the branch to it
        0x15,  # SVC; ELR_EL1 is the address after it
        0x18,  # MSR, MRS or a system instruction, trapped
        0x19,  # SVE, trapped
        0x1C,  # pointer authentication failed
        0x1D,  # SME, trapped
        DATA_ABORT,
        0x26,  # SP alignment: a load or store by SP
        0x27,  # memory copy and set
        0x2C,  # floating point, trapped
        0x3C,  # BRK
    }
)
"""Classes of exceptions from EL1 that only an instruction at ELR_EL1 causes, or SVC before it.

Not in it, as they need no instruction: illegal execution state (0x0e) and PC alignment (0x22) come
before a fetch, breakpoints (0x31) and software steps (0x33) go by the address, instruction aborts
(0x21) come instead of a fetch. Nor what EL0 causes (0x20, 0x24), EL2 takes, or AArch32 has.
"""


def exception_class(esr: int) -> int:
    """Return ESR_ELx.EC."""
    return esr >> 26 & 0x3F


def fault_status(esr: int) -> int:
    """Return IFSC or DFSC of an abort: ESR_ELx.ISS[5:0]."""
    return esr & 0x3F
