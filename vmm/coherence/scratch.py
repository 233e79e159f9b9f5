"""A guest of some thirty instructions, whose accesses succeed or fail by memory type.

    IPA 0x0900_0000  mailbox: the guest's stores there are exits
        0x4000_0000  scratch RAM: vectors, code, page table
        0x1_0000_0000  the range under test, as the real guest would have it

Its stage 1 is on and maps the range Normal Write-Back and executable, so that stage 2 decides what
an access does (Arm ARM D8.6, on combining stage 1 and stage 2 attributes). It uses a translation
granule that its own ID register has (`vmm.coherence.scratch_table`). It runs at EL1, as guests do.
"""

from __future__ import annotations

import errno
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from threading import Event, Timer
from typing import TYPE_CHECKING, Final

from vmm.arm64 import registers
from vmm.closeable import Closeable
from vmm.coherence import vma
from vmm.coherence.cpu import CacheFeatures
from vmm.coherence.scratch_table import ADDRESS_BITS, Granule, choose, page_table
from vmm.errors import HostError
from vmm.kvm.capability import Cap
from vmm.kvm.exits import Interrupted, MmioWrite
from vmm.kvm.fd import KvmError
from vmm.kvm.vm import MemFlag
from vmm.memory import Mapping, Region

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.coherence.vma import Vma
    from vmm.kvm.system import System
    from vmm.kvm.vm import Vm

MAILBOX: Final = 0x0900_0000
RAM: Final = 0x4000_0000
RAM_SIZE: Final = 0x4_0000
"""A multiple of all of arm64's page sizes."""
RANGE: Final = 0x1_0000_0000

TABLE: Final = 0x1_0000
CODE: Final = 0x1000
SYNCHRONOUS: Final = 0x200
"""Offset of the vector for synchronous exceptions from EL1 with SP_EL1 (Arm ARM D1.3.1)."""

# (assembly, encoding); tests/coherence/test_scratch.py has the assembler check each.
PROGRAMS: Final = {
    "aligned": (("ldr x3, [x0]", 0xF9400003), ("str x3, [x20]", 0xF9000283), ("b .", 0x14000000)),
    "unaligned": (
        ("ldur x3, [x0, #1]", 0xF8401003),
        ("str x3, [x20]", 0xF9000283),
        ("b .", 0x14000000),
    ),
    "zero": (("dc zva, x0", 0xD50B7420), ("str x0, [x20]", 0xF9000280), ("b .", 0x14000000)),
    "plant": (
        ("str w4, [x0]", 0xB9000004),
        ("dc cvau, x0", 0xD50B7B20),
        ("dsb ish", 0xD5033B9F),
        ("ic ivau, x0", 0xD50B7520),
        ("dsb ish", 0xD5033B9F),
        ("isb", 0xD5033FDF),
        ("str x4, [x20]", 0xF9000284),
        ("b .", 0x14000000),
    ),
    # By exception return, so that no register holds the address of the bytes that are executed.
    "jump": (
        ("msr elr_el1, x0", 0xD5184020),
        ("mov x1, #0x3c5", 0xD28078A1),  # EL1 with SP_EL1, interrupts masked
        ("msr spsr_el1, x1", 0xD5184001),
        ("adr x30, .+16", 0x1000009E),
        ("mov x0, x2", 0xAA0203E0),
        ("mov x1, x2", 0xAA0203E1),
        ("eret", 0xD69F03E0),
        ("str x0, [x20]", 0xF9000280),
        ("b .", 0x14000000),
    ),
}
VECTOR: Final = (
    ("mrs x5, esr_el1", 0xD5385205),
    ("str x5, [x20, #8]", 0xF9000685),
    ("b .", 0x14000000),
)
RET: Final = 0xD65F03C0

MAIR: Final = 0x00FF
"""Attribute 0: Normal Write-Back; attribute 1: Device-nGnRnE."""
TCR: Final = 64 - ADDRESS_BITS | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32
"""Without the granule: Write-Back inner shareable walks, no TTBR1, 40-bit IPAs."""
SCTLR: Final = 0x30D0_0800 | 1 << 0 | 1 << 2 | 1 << 12
"""RES1 bits; MMU, data and instruction cache on; alignment checks off."""
EL1H: Final = 0x3C5
"""PSTATE: EL1 with SP_EL1, interrupts masked."""

POISON: Final = 0xDEAD_0000_0000
"""An unmapped address, for all registers that unknown instructions could use."""

TIMEOUT: Final = 20.0
"""Seconds that a program may take by default, in an emulated host as well."""


class Fate(Enum):
    """How a program ended."""

    RAN = "ran"
    ABORTED = "took an exception"
    STORED = "stored to the range"
    FAILED = "KVM_RUN failed"
    HUNG = "did not come back"


@dataclass(frozen=True)
class Outcome:
    """How a program ended; ABORTED has the guest's ESR_EL1 and ELR_EL1, FAILED KVM_RUN's errno.

    STORED is a store to a slot that is read-only, which KVM did not make (KVM_EXIT_MMIO), or an
    access that it cannot describe (ENOSYS: arch/arm64/kvm/mmio.c, io_mem_abort).
    """

    fate: Fate
    esr: int = 0
    errno: int = 0
    elr: int = 0


@dataclass(frozen=True)
class Features:
    """What a guest has that decides what its VM is given; by default, nothing optional.

    mte      memory tagging: KVM then refuses slots of memory that cannot have tags
    granule  the translation granule of its stage 1; None: one that the CPU has
    """

    mte: bool = False
    granule: Granule | None = None


PLAIN: Final = Features()


def first_registers(entry: int, offset: int, granule: Granule) -> dict[int, int]:
    """Return the registers, by id, with which a program at *entry* begins; others are poisoned."""
    return {
        registers.x(0): RANGE + offset,
        registers.x(4): RET,
        registers.x(20): MAILBOX,
        registers.SP_EL1: POISON,
        registers.PC: entry,
        registers.PSTATE: EL1H,
        registers.MAIR_EL1: MAIR,
        registers.TCR_EL1: TCR | granule.tcr,
        registers.TTBR0_EL1: RAM + TABLE,
        registers.VBAR_EL1: RAM,
        registers.SCTLR_EL1: SCTLR,
    }


class ScratchGuest(Closeable):
    """Own a VM with a slot of *size* bytes at *host_address*, registered with *flags*.

    *register* makes that slot, number 1, in another way: it gets the VM. Raises `KvmError` if the
    slot is refused, `HostError` if KVM gives no guest one of *features*.
    """

    def __init__(  # noqa: PLR0913  (a slot has as many fields)
        self,
        system: System,
        host_address: int,
        size: int,
        flags: int = 0,
        *,
        register: Callable[[Vm], None] | None = None,
        features: Features = PLAIN,
    ) -> None:
        self._owned = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            ram = self._owned.enter_context(Mapping.anonymous(RAM_SIZE))
            self.vm = self._owned.enter_context(system.create_vm(RANGE + size))
            if features.mte:
                self._enable_mte()
            # Slots go before what they map.
            self.vm.set_user_memory_region(0, 0, RAM, RAM_SIZE, Region(RAM, ram.view).host_address)
            self._owned.callback(self.vm.set_user_memory_region, 0, 0, RAM, 0, 0)
            if register is None:
                self.vm.set_user_memory_region(1, flags, RANGE, size, host_address)
            else:
                register(self.vm)
            self._owned.callback(self.vm.set_user_memory_region, 1, 0, RANGE, 0, 0)
            self.flags = flags
            self.timeout = TIMEOUT
            """Seconds that a program may take."""
            self._where = (RANGE, size, host_address)
            self.vcpu = self._owned.enter_context(self.vm.create_vcpu(0))
            self._init = self.vm.preferred_target()
            self.vcpu.arm_vcpu_init(self._init)
            self.cpu = CacheFeatures.of_vcpu(self.vcpu)
            mmfr0 = self.vcpu.get_one_reg(registers.ID_AA64MMFR0_EL1)
            self.granule = features.granule or choose(mmfr0)
            self._ram = ram.view
            undo.pop_all()

    def _enable_mte(self) -> None:
        if not self.vm.check_extension(Cap.ARM_MTE):
            raise HostError(
                "guests of this host cannot have memory tagging: KVM_CAP_ARM_MTE is 0",
                "it needs a CPU with FEAT_MTE2, and a kernel with CONFIG_ARM64_MTE",
            )
        self.vm.enable_cap(Cap.ARM_MTE)

    def _fill(self) -> None:
        """Write code and page table: what was executed of the range may have stored there."""
        ram, at = self._ram, CODE
        self._entries = {}
        for name, program in PROGRAMS.items():
            self._entries[name] = RAM + at
            at = _emit(ram, at, program)
        _emit(ram, SYNCHRONOUS, VECTOR)
        table = page_table(self.granule, RAM + TABLE, device_below=RAM)
        ram[TABLE : TABLE + len(table)] = table

    def run(self, program: str, offset: int) -> Outcome:
        """Run *program* on the bytes at *offset* of the range; a failed KVM_RUN is an outcome."""
        vcpu = self.vcpu
        self._fill()
        vcpu.arm_vcpu_init(self._init)
        for number in range(31):
            vcpu.set_one_reg(registers.x(number), POISON)
        first = first_registers(self._entries[program], offset, self.granule)
        for register, value in first.items():
            vcpu.set_one_reg(register, value)
        expired = Event()

        def give_up() -> None:
            expired.set()
            vcpu.kick()

        timer = Timer(self.timeout, give_up)
        timer.start()
        try:
            # Signals other than the kick interrupt KVM_RUN as well: enter again.
            while isinstance(exit_ := vcpu.run(), Interrupted) and not expired.is_set():
                vcpu.acknowledge_kick()
        except KvmError as error:
            if program == "jump" and error.errno == errno.ENOSYS:
                return Outcome(Fate.STORED)
            return Outcome(Fate.FAILED, errno=error.errno)
        finally:
            timer.cancel()
            timer.join()
            vcpu.acknowledge_kick()
        self._complete()
        match exit_:
            case MmioWrite(address, 8, esr) if address == MAILBOX + 8:
                return Outcome(Fate.ABORTED, esr=esr, elr=vcpu.get_one_reg(registers.ELR_EL1))
            case MmioWrite(address) if address == MAILBOX:
                return Outcome(Fate.RAN)
            case MmioWrite(address) if address >= RANGE:
                return Outcome(Fate.STORED)
        return Outcome(Fate.HUNG)

    @cached_property
    def behind(self) -> Vma | None:
        """The host's mapping behind the range, as it was when first asked for."""
        return vma.find(self._where[2])

    def protect(self) -> None:
        """Make the slot under test read-only, so that nothing is stored there; KVM makes it anew.

        Raises `KvmError`.
        """
        self.vm.set_user_memory_region(1, 0, RANGE, 0, 0)
        self.set_flags(self.flags | MemFlag.READONLY)

    def set_flags(self, flags: int) -> None:
        """Change the flags of the slot under test. Raises `KvmError`."""
        self.vm.set_user_memory_region(1, flags, *self._where)
        self.flags = flags

    def _complete(self) -> None:
        """Let KVM complete the access that exited, without running the guest.

        KVM steps over an emulated access when the vCPU is next run, even if its program counter
        was set meanwhile: the next program would begin with its second instruction
        (api.rst 5, on KVM_EXIT_MMIO and immediate_exit; arch/arm64/kvm/mmio.c).
        """
        self.vcpu.kick()
        self.vcpu.run()
        self.vcpu.acknowledge_kick()

    def close(self) -> None:
        """Destroy the VM. Idempotent."""
        self._owned.close()


def _emit(ram: memoryview, at: int, program: tuple[tuple[str, int], ...]) -> int:
    code = struct.pack(f"<{len(program)}I", *(word for _, word in program))
    ram[at : at + len(code)] = code
    return at + len(code)
