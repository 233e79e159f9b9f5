"""The target description: which registers gdb sees, under which numbers.

    0..33     org.gnu.gdb.aarch64.core    x0 to x30, sp, pc, cpsr
    34..      .fpu, or .sve where vCPUs have SVE
    ..        .pauth_v2                   which bits of a pointer are its signature
    ..        org.pyvmm.aarch64.system    all other registers that KVM has, by name

Source: the GDB manual, appendices G.2 (format) and G.5.1 (AArch64 features).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple
from xml.sax.saxutils import quoteattr

from vmm._native import lib
from vmm.arm64.register_names import BY_NAME, id_of, name_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_CORE: Final = (*(f"x{n}" for n in range(31)), "sp", "pc", "cpsr")
CORE_COUNT: Final = len(_CORE)
"""How many registers a ``g`` packet has; others are asked for one by one."""

PAUTH: Final = ("pauth_dmask", "pauth_cmask", "pauth_dmask_high", "pauth_cmask_high")
"""Masks of the bits that gdb takes off data and code pointers, of each half of addresses."""

_HEAD: Final = '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">'

_V_TYPES: Final = """<vector id="v2d" type="ieee_double" count="2"/>
<vector id="v2u" type="uint64" count="2"/><vector id="v4f" type="ieee_single" count="4"/>
<vector id="v4u" type="uint32" count="4"/><vector id="v8u" type="uint16" count="8"/>
<vector id="v16u" type="uint8" count="16"/><union id="vq">
<field name="d" type="v2d"/><field name="u" type="v2u"/><field name="f" type="v4f"/>
<field name="s" type="v4u"/><field name="h" type="v8u"/><field name="b" type="v16u"/></union>"""

_CPSR: Final = """<flags id="cpsr_flags" size="4"><field name="SP" start="0" end="0"/>
<field name="EL" start="2" end="3"/><field name="F" start="6" end="6"/>
<field name="I" start="7" end="7"/><field name="A" start="8" end="8"/>
<field name="D" start="9" end="9"/><field name="BTYPE" start="10" end="11"/>
<field name="SSBS" start="12" end="12"/><field name="IL" start="20" end="20"/>
<field name="SS" start="21" end="21"/><field name="PAN" start="22" end="22"/>
<field name="UAO" start="23" end="23"/><field name="DIT" start="24" end="24"/>
<field name="TCO" start="25" end="25"/><field name="V" start="28" end="28"/>
<field name="C" start="29" end="29"/><field name="Z" start="30" end="30"/>
<field name="N" start="31" end="31"/></flags>"""


class Register(NamedTuple):
    """A register as gdb has it; its number is its place in the list.

    name  gdb's
    size  bytes
    type  a type of gdb's, or of the feature
    """

    name: str
    size: int
    type: str = "int"


class Feature(NamedTuple):
    """A feature: its name, the types it declares, its registers."""

    name: str
    types: str
    registers: tuple[Register, ...]


class Description:
    """The registers of a vCPU with the ids *available*, as KVM_GET_REG_LIST has them.

    vector_length  bytes of an SVE vector; 0: there is no SVE
    pauth          whether vCPUs sign pointers
    """

    def __init__(self, available: Collection[int], vector_length: int, *, pauth: bool) -> None:
        core = [Register(name, 8, "data_ptr" if name == "sp" else "int") for name in _CORE]
        core[-2:] = Register("pc", 8, "code_ptr"), Register("cpsr", 4, "cpsr_flags")
        self.features = [
            Feature("org.gnu.gdb.aarch64.core", _CPSR, tuple(core)),
            _sve(vector_length) if vector_length else _fpu(),
        ]
        if pauth:
            masks = tuple(Register(name, 8) for name in PAUTH)
            self.features.append(Feature("org.gnu.gdb.aarch64.pauth_v2", "", masks))
        system = tuple(Register(name, 8, "uint64") for name in _system(available))
        self.features.append(Feature("org.pyvmm.aarch64.system", "", system))
        self.registers = [each for feature in self.features for each in feature.registers]
        self.vector_length = vector_length

    def xml(self) -> str:
        """Return target.xml."""
        body = "".join(
            f"<feature name={quoteattr(feature.name)}>{feature.types}"
            + "".join(_lines(feature))
            + "</feature>"
            for feature in self.features
        )
        return f'{_HEAD}<target version="1.0"><architecture>aarch64</architecture>{body}</target>'


def _lines(feature: Feature) -> Iterator[str]:
    group = ' group="system"' if feature.name.startswith("org.pyvmm") else ""
    for register in feature.registers:
        bits = register.size * 8
        yield (
            f"<reg name={quoteattr(register.name)} bitsize={quoteattr(str(bits))} "
            f"type={quoteattr(register.type)}{group}/>"
        )


def _fpu() -> Feature:
    vectors = tuple(Register(f"v{n}", 16, "vq") for n in range(32))
    return Feature("org.gnu.gdb.aarch64.fpu", _V_TYPES, (*vectors, *_STATUS))


def _sve(length: int) -> Feature:
    types = (
        f'<vector id="svez" type="uint64" count="{length // 8}"/>'
        f'<vector id="svep" type="uint8" count="{length // 8}"/>'
    )
    vectors = tuple(Register(f"z{n}", length, "svez") for n in range(32))
    predicates = tuple(Register(f"p{n}", length // 8, "svep") for n in range(16))
    rest = (Register("ffr", length // 8, "svep"), Register("vg", 8))
    return Feature("org.gnu.gdb.aarch64.sve", types, (*vectors, *_STATUS, *predicates, *rest))


_STATUS: Final = (Register("fpsr", 4), Register("fpcr", 4))


def _system(available: Iterable[int]) -> list[str]:
    """Return the names of all 64-bit registers of *available* that no other feature has."""
    wanted = {BY_NAME[name]: name for name in ("SP_EL1", "ELR_EL1", "SPSR_EL1")}
    names = ["SP_EL0"]
    for register in available:
        coprocessor = register & lib.KVM_REG_ARM_COPROC_MASK
        if register in wanted:
            names.append(wanted[register])
        elif coprocessor == lib.KVM_REG_ARM64_SYSREG and register == id_of(name_of(register)):
            names.append(name_of(register))
    return names
