"""The registers that hold a GIC's state, as attributes of KVM's device, in the order of a restore.

Source: Documentation/virt/kvm/devices/arm-vgic-v3.rst, arm-vgic.rst and arm-vgic-its.rst; IHI 0069
and IHI 0048 for names and offsets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vmm._native import lib
from vmm.arm64 import layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.kvm.device import Device

INTERRUPTS: Final = layout.FIRST_SPI + layout.SPI_COUNT
PRIVATE: Final = layout.FIRST_SPI
"""Interrupts 0 to 31: SGIs and PPIs, which each vCPU has for itself."""

SGI_FRAME: Final = 0x1_0000
"""Offset of the second frame of a redistributor, which has the private interrupts."""


class Register(NamedTuple):
    """One register: attribute *attr* of *group*, *size* bytes.

    clear  the attribute that clears the bits that are written to it, for a register that only sets
    """

    section: str
    name: str
    group: int
    attr: int
    size: int = 4
    clear: int | None = None

    @property
    def kind(self) -> str:
        """Its C type."""
        return f"uint{8 * self.size}_t"


Kind = tuple[str, int, int, int | None]
"""Registers with some bits for each interrupt: name, offset, bits, and what clears its bits."""

_PER_INTERRUPT: Final[tuple[Kind, ...]] = (
    ("IPRIORITYR", 0x400, 8, None),
    ("IGROUPR", 0x080, 1, None),
    ("ICFGR", 0xC00, 2, None),
)
_STATES: Final[tuple[Kind, ...]] = (
    ("ISPENDR", 0x200, 1, None),
    ("ISACTIVER", 0x300, 1, None),
    ("ISENABLER", 0x100, 1, 0x180),
)


class Frame(NamedTuple):
    """Registers in one section and group, whose attributes begin with *base*."""

    section: str
    prefix: str
    group: int
    base: int

    def one(self, name: str, offset: int, size: int = 4) -> Register:
        """Return the register at *offset*."""
        return Register(self.section, self.prefix + name, self.group, self.base + offset, size)

    def each(self, kind: Kind, first: int, last: int) -> Iterator[Register]:
        """Return the registers of interrupts *first* to *last* - 1, 32 bits each."""
        name, offset, bits, clear = kind
        for index in range(first * bits // 32, last * bits // 32):
            yield Register(
                self.section,
                f"{self.prefix}{name}{index}",
                self.group,
                self.base + offset + 4 * index,
                clear=None if clear is None else self.base + clear + 4 * index,
            )


def gicv3(device: Device, mpidrs: Sequence[int]) -> Iterator[Register]:
    """Return the registers of a GICv3 whose vCPUs have the affinities *mpidrs*.

    GICD_IIDR comes first, because it decides what the others mean, and GICD_CTLR next: while the
    distributor is off, KVM queues no interrupt for a vCPU, and does not look again when it is
    turned on (vgic.c, vgic_target_oracle). A timer whose level was high would be lost for good.
    Interrupts get their target, priority and kind before they become pending. Raises `KvmError`.
    """
    levels = lib.KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO
    gicd = Frame("distributor", "GICD_", lib.KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0)
    yield gicd.one("IIDR", 0x8)
    yield gicd.one("CTLR", 0)
    for number in range(PRIVATE, INTERRUPTS):
        for half, suffix in ((0, "_lo"), (4, "_hi")):
            yield gicd.one(f"IROUTER{number}{suffix}", 0x6000 + 8 * number + half)
    for kind in _PER_INTERRUPT:
        yield from gicd.each(kind, PRIVATE, INTERRUPTS)
    for number in range(PRIVATE, INTERRUPTS, 32):
        yield Register("distributor", f"level{number // 32}", levels, number)
    for kind in _STATES:
        yield from gicd.each(kind, PRIVATE, INTERRUPTS)
    for index, mpidr in enumerate(mpidrs):
        yield from _redistributor(f"cpu{index}", _affinity(mpidr))
    for index, mpidr in enumerate(mpidrs):
        yield from _cpu_interface(device, f"cpu{index}", _affinity(mpidr))
    yield gicd.one("STATUSR", 0x10)


def _affinity(mpidr: int) -> int:
    """Return *mpidr*'s affinity fields where the attributes of a vCPU have them."""
    packed = mpidr & 0xFF_FFFF | mpidr >> 8 & 0xFF00_0000
    shift: int = lib.KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT
    return packed << shift


def _redistributor(section: str, cpu: int) -> Iterator[Register]:
    group = lib.KVM_DEV_ARM_VGIC_GRP_REDIST_REGS
    gicr = Frame(section, "GICR_", group, cpu)
    for name, offset in (("PROPBASER", 0x70), ("PENDBASER", 0x78)):
        yield gicr.one(f"{name}_lo", offset)
        yield gicr.one(f"{name}_hi", offset + 4)
    sgi = Frame(section, "GICR_", group, cpu + SGI_FRAME)
    for kind in _PER_INTERRUPT:
        yield from sgi.each(kind, 0, PRIVATE)
    yield Register(section, "level0", lib.KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, cpu)
    for kind in _STATES:
        yield from sgi.each(kind, 0, PRIVATE)
    yield gicr.one("STATUSR", 0x10)
    yield gicr.one("WAKER", 0x14)
    yield gicr.one("CTLR", 0)  # after the tables: it turns LPIs on


def _cpu_interface(device: Device, section: str, cpu: int) -> Iterator[Register]:
    icc = Frame(section, "ICC_", lib.KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, cpu)

    def register(name: str, crn: int, crm: int, op2: int) -> Register:
        return icc.one(f"{name}_EL1", 3 << 14 | crn << 7 | crm << 3 | op2, 8)

    control = register("CTLR", 12, 12, 4)
    yield register("SRE", 12, 12, 5)
    yield control
    yield register("PMR", 4, 6, 0)
    yield register("BPR0", 12, 8, 3)
    yield register("BPR1", 12, 12, 3)
    # ICC_CTLR_EL1.PRIbits: as many bits of priority, less one (IHI 0069, 12.2.6).
    bits = (device.get_attr(control.group, control.attr, control.kind) >> 8 & 7) + 1
    for number in range(1 << max(bits - 5, 0)):
        yield register(f"AP0R{number}", 12, 8, 4 + number)
        yield register(f"AP1R{number}", 12, 9, number)
    yield register("IGRPEN0", 12, 12, 6)
    yield register("IGRPEN1", 12, 12, 7)


def its() -> Iterator[Register]:
    """Return the ITS's registers; its tables are loaded between the last two (`CTLR` is last).

    GITS_CBASER resets GITS_CREADR, so it comes before that.
    """
    gits = Frame("its", "GITS_", lib.KVM_DEV_ARM_VGIC_GRP_ITS_REGS, 0)
    yield gits.one("IIDR", 0x4, 8)
    yield gits.one("CBASER", 0x80, 8)
    yield gits.one("CREADR", 0x90, 8)
    yield gits.one("CWRITER", 0x88, 8)
    for number in range(8):
        yield gits.one(f"BASER{number}", 0x100 + 8 * number, 8)
    yield gits.one("CTLR", 0, 8)


def gicv2(vcpus: int) -> Iterator[Register]:
    """Return the registers of a GICv2 with *vcpus* vCPUs.

    KVM shows no input levels of a GICv2: devices drive their lines again.
    """
    group = lib.KVM_DEV_ARM_VGIC_GRP_DIST_REGS
    targets: Kind = ("ITARGETSR", 0x800, 8, None)
    gicd = Frame("distributor", "GICD_", group, 0)
    yield gicd.one("IIDR", 0x8)
    yield gicd.one("CTLR", 0)
    for kind in (targets, *_PER_INTERRUPT, *_STATES):
        yield from gicd.each(kind, PRIVATE, INTERRUPTS)
    for index in range(vcpus):
        cpu = index << lib.KVM_DEV_ARM_VGIC_CPUID_SHIFT
        banked = Frame(f"cpu{index}", "GICD_", group, cpu)
        for kind in (*_PER_INTERRUPT, *_STATES):
            yield from banked.each(kind, 0, PRIVATE)
        for number in range(4):  # the sources of each pending SGI
            yield Register(
                banked.section,
                f"GICD_SPENDSGIR{number}",
                group,
                cpu + 0xF20 + 4 * number,
                clear=cpu + 0xF10 + 4 * number,
            )
        gicc = Frame(f"cpu{index}", "GICC_", lib.KVM_DEV_ARM_VGIC_GRP_CPU_REGS, cpu)
        for name, offset in (("PMR", 0x4), ("BPR", 0x8), ("ABPR", 0x1C)):
            yield gicc.one(name, offset)
        for number in range(4):
            yield gicc.one(f"APR{number}", 0xD0 + 4 * number)
        yield gicc.one("CTLR", 0)
