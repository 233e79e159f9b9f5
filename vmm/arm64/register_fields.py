"""What is in the fields of registers, for people: ``ESR_EL1`` as its class and its syndrome.

Source: Arm ARM, D24.2; the ID registers' fields are those of `id_fields`.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from vmm.arm64 import esr
from vmm.arm64.id_registers import id_registers

TABLE: Final = """
ESR_EL1: ISS2 32:24, EC 26:6, IL 25, ISS 0:25
SCTLR_EL1: TIDCP 63, SPINTMASK 62, NMI 61, EPAN 57, EnALS 56, EnAS0 55, EnASR 54, DSSBS 44, ATA 43,
    ATA0 42, TCF 40:2, TCF0 38:2, ITFSB 37, BT1 36, BT0 35, EnFPM 34, MSCEn 33, CMOW 32, EnIA 31,
    EnIB 30, LSMAOE 29, nTLSMD 28, EnDA 27, UCI 26, EE 25, E0E 24, SPAN 23, EIS 22, IESB 21,
    TSCXT 20, WXN 19, nTWE 18, nTWI 16, UCT 15, DZE 14, EnDB 13, I 12, EOS 11, EnRCTX 10, UMA 9,
    SED 8, ITD 7, nAA 6, CP15BEN 5, SA0 4, SA 3, C 2, A 1, M 0
TCR_EL1: DS 59, TCMA1 58, TCMA0 57, E0PD1 56, E0PD0 55, NFD1 54, NFD0 53, TBID1 52, TBID0 51,
    HPD1 42, HPD0 41, HD 40, HA 39, TBI1 38, TBI0 37, AS 36, IPS 32:3, TG1 30:2, SH1 28:2,
    ORGN1 26:2, IRGN1 24:2, EPD1 23, A1 22, T1SZ 16:6, TG0 14:2, SH0 12:2, ORGN0 10:2, IRGN0 8:2,
    EPD0 7, T0SZ 0:6
TTBR0_EL1: ASID 48:16, BADDR 1:47, CnP 0
TTBR1_EL1: ASID 48:16, BADDR 1:47, CnP 0
MAIR_EL1: Attr7 56:8, Attr6 48:8, Attr5 40:8, Attr4 32:8, Attr3 24:8, Attr2 16:8, Attr1 8:8,
    Attr0 0:8
CPACR_EL1: TTA 28, SMEN 24:2, FPEN 20:2, ZEN 16:2
MPIDR_EL1: Aff3 32:8, U 30, MT 24, Aff2 16:8, Aff1 8:8, Aff0 0:8
MIDR_EL1: Implementer 24:8, Variant 20:4, Architecture 16:4, PartNum 4:12, Revision 0:4
PAR_EL1: ATTR 56:8, PA 12:40, NS 9, SH 7:2, FST 1:6, F 0
CNTV_CTL_EL0: ISTATUS 2, IMASK 1, ENABLE 0
CNTP_CTL_EL0: ISTATUS 2, IMASK 1, ENABLE 0
pstate: N 31, Z 30, C 29, V 28, TCO 25, DIT 24, UAO 23, PAN 22, SS 21, IL 20, BTYPE 10:2, D 9, A 8,
    I 7, F 6, nRW 4, EL 2:2, SP 0
SPSR_EL1: N 31, Z 30, C 29, V 28, TCO 25, DIT 24, UAO 23, PAN 22, SS 21, IL 20, BTYPE 10:2, D 9,
    A 8, I 7, F 6, nRW 4, EL 2:2, SP 0
"""
"""A register, then its fields: NAME shift[:width]; one bit where there is no width."""

CLASSES: Final = {
    0x00: "unknown reason",
    0x01: "trapped WFI or WFE",
    0x07: "trapped SIMD or floating point",
    0x0D: "branch target",
    0x0E: "illegal execution state",
    0x15: "SVC",
    0x16: "HVC",
    0x18: "trapped MSR, MRS or system instruction",
    0x19: "trapped SVE",
    0x1C: "pointer authentication failure",
    0x20: "instruction abort from EL0",
    0x21: "instruction abort from EL1",
    0x22: "PC alignment",
    0x24: "data abort from EL0",
    0x25: "data abort from EL1",
    0x26: "SP alignment",
    0x27: "memory copy and set",
    0x2C: "floating point exception",
    0x2F: "SError",
    0x30: "breakpoint from EL0",
    0x31: "breakpoint from EL1",
    0x32: "software step from EL0",
    0x33: "software step from EL1",
    0x34: "watchpoint from EL0",
    0x35: "watchpoint from EL1",
    0x3C: "BRK",
}
"""Exception classes: ESR_EL1.EC."""

FAULTS: Final = {0: "address size fault", 1: "translation fault", 2: "access flag fault"} | {
    3: "permission fault"
}
"""DFSC and IFSC, bits 5:2, of faults that have a level in bits 1:0."""
OTHER_FAULTS: Final = {
    esr.EXTERNAL_ABORT: "synchronous external abort",
    esr.ALIGNMENT_FAULT: "alignment fault",
    0x30: "TLB conflict abort",
}
ABORTS: Final = frozenset((0x20, 0x21, 0x24, 0x25))
"""Classes whose syndrome has a fault status."""


@cache
def _places() -> dict[str, tuple[tuple[str, int, int], ...]]:
    lines = re.finditer(r"(\w+):((?: [^\n]*(?:\n    [^\n]*)*))", TABLE)
    return {
        line[1]: tuple(
            (name, int(shift), int(width or 1))
            for name, shift, width in re.findall(r"(\w+) (\d+)(?::(\d+))?", line[2])
        )
        for line in lines
    }


def fields(register: str, value: int) -> dict[str, int | str]:
    """Return the fields of *register*, high to low, with their values in *value*.

    ESR_EL1 has two more, in words: "class", and "fault" for an abort. {}: its fields are not known.
    """
    if register in id_registers():
        return {field.name: field.get(value) for field in id_registers()[register].fields}
    found: dict[str, int | str] = {
        name: value >> shift & ((1 << width) - 1)
        for name, shift, width in _places().get(register, ())
    }
    if register == "ESR_EL1":
        kind = esr.exception_class(value)
        found["class"] = CLASSES.get(kind, f"class {kind:#x}")
        if kind in ABORTS:
            found["fault"] = _fault(esr.fault_status(value))
    return found


def _fault(code: int) -> str:
    if code >> 2 in FAULTS:
        return f"{FAULTS[code >> 2]}, level {code & 3}"
    return OTHER_FAULTS.get(code, f"fault status {code:#x}")
