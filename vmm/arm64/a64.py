"""Tell A64 code from other data, to recognise flat binaries.

Encodings are from the Arm ARM (DDI 0487), section C4.1.
"""

from __future__ import annotations

_STEPS = 24
"""Instructions to follow. Half of all words are valid: random data passes by a chance of 2**-24."""


def plausible(code: memoryview) -> bool:
    """Return whether *code*, executed from its first byte, could be a program.

    Follows branches until control leaves (return, hypervisor call), loops, or has taken `_STEPS`
    steps. Floating point is not accepted: it traps until it is enabled.
    """
    at = 0
    been = set()
    for _ in range(_STEPS):
        if at in been:
            return True
        been.add(at)
        if not 0 <= at <= len(code) - 4:
            return False
        word = int.from_bytes(code[at : at + 4], "little")
        if _leaves(word):
            return True
        if word & 0xFC00_0000 == 0x1400_0000:  # B
            at += _offset(word, 0, 26)
        elif _runs_on(word, at, len(code)):
            at += 4
        else:
            return False
    return True


def _leaves(word: int) -> bool:
    return (
        word & 0xFFFF_FC1F in {0xD61F_0000, 0xD65F_0000}  # BR, RET
        or word == 0xD69F_03E0  # ERET
        or word in {0xD400_0002, 0xD400_0003}  # HVC #0, SMC #0
    )


def _runs_on(word: int, at: int, size: int) -> bool:
    """Return whether *word* is an instruction after which the next may execute."""
    target = at
    if word & 0x7E00_0000 == 0x3400_0000 or word & 0xFF00_0010 == 0x5400_0000:  # CBZ, B.cond
        target += _offset(word, 5, 19)
    elif word & 0x7E00_0000 == 0x3600_0000:  # TBZ
        target += _offset(word, 5, 14)
    elif word & 0xFC00_0000 == 0x9400_0000:  # BL
        target += _offset(word, 0, 26)
    elif not (
        word & 0x1C00_0000 == 0x1000_0000  # data processing, immediate
        or word & 0x0A00_0000 == 0x0800_0000  # loads and stores
        or word & 0x0E00_0000 == 0x0A00_0000  # data processing, register
        or word & 0xFFC0_0000 == 0xD500_0000  # system: MSR, MRS, barriers, hints
        or word & 0xFFFF_FC1F == 0xD63F_0000  # BLR
        or word & 0xFFE0_001F in {0xD400_0002, 0xD400_0003}  # HVC, SMC
    ):
        return False
    return 0 <= target < size


def _offset(word: int, low: int, width: int) -> int:
    """Return the branch offset in *width* bits from bit *low*: signed, in bytes."""
    field = word >> low & (1 << width) - 1
    return 4 * (field - (field >> width - 1 << width))
