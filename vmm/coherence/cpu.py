"""The two CPU features that decide about cacheable memory: FEAT_S2FWB, and CTR_EL0.DIC and IDC.

    FWB  ID_AA64MMFR2_EL1 bits 43:40: stage 2 can force Write-Back, and KVM then does
    DIC  CTR_EL0 bit 29: instruction fetches need no invalidation of instruction caches
    IDC  CTR_EL0 bit 28: they need no cleaning of data caches

KVM shows both registers to userspace as a vCPU has them. Their values begin as those that the
kernel uses for itself, the least of all CPUs (read_sanitised_ftr_reg), and FWB cannot be changed
there (arch/arm64/kvm/sys_regs.c). So a new vCPU tells what KVM does, on legacy kernels too, without
capability 243: FWB since Linux 5.0, as KVM reads the register so. CTR_EL0 as EL0 reads it may lack
DIC and IDC although the CPU has them (erratum 1542419); KVM's copy does not.

Source: Arm ARM D24.2 (ID_AA64MMFR2_EL1, CTR_EL0); arch/arm64/kvm/hyp/pgtable.c
(stage2_set_prot_attr).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.arm64 import registers
from vmm.kvm.fd import KvmError

if TYPE_CHECKING:
    from vmm.kvm.vcpu import Vcpu
    from vmm.kvm.vm import Vm

_FWB_SHIFT: Final = 40
_FWB_MASK: Final = 0xF
_IDC: Final = 1 << 28
_DIC: Final = 1 << 29


@dataclass(frozen=True)
class CacheFeatures:
    """FWB, DIC and IDC; None: it cannot be told. *evidence*: where each was read."""

    fwb: bool | None = None
    dic: bool | None = None
    idc: bool | None = None
    evidence: tuple[str, ...] = ()

    @classmethod
    def of_vm(cls, vm: Vm) -> CacheFeatures:
        """Ask a new vCPU of *vm*, which must have none. All None where KVM is not arm64's."""
        if not lib.pyvmm_ctr_el0():
            return cls()
        with vm.create_vcpu(0) as vcpu:
            vcpu.arm_vcpu_init(vm.preferred_target())
            return cls.of_vcpu(vcpu)

    @classmethod
    def of_vcpu(cls, vcpu: Vcpu) -> CacheFeatures:
        """Ask *vcpu*, which is initialized."""
        mmfr2 = _read(vcpu, registers.ID_AA64MMFR2_EL1)
        ctr = _read(vcpu, registers.CTR_EL0)
        return cls.judge(mmfr2, ctr, lib.pyvmm_ctr_el0())

    @classmethod
    def judge(cls, mmfr2: int | None, ctr: int | None, ctr_at_el0: int) -> CacheFeatures:
        """Return the features that the registers' values tell; None: KVM shows no such register."""
        fwb: bool | None = None
        evidence: list[str] = []
        if mmfr2 is not None:
            field = mmfr2 >> _FWB_SHIFT & _FWB_MASK
            fwb = bool(field)
            evidence.append(f"ID_AA64MMFR2_EL1.FWB of a vCPU is {field}")
        where = "a vCPU" if ctr is not None else "this process"
        ctr = ctr_at_el0 if ctr is None else ctr
        dic, idc = bool(ctr & _DIC), bool(ctr & _IDC)
        evidence.append(f"CTR_EL0 of {where} has DIC {int(dic)}, IDC {int(idc)}")
        return cls(fwb, dic, idc, tuple(evidence))

    @property
    def lacking(self) -> str:
        """What of FWB and DIC is not there, or not known to be there, for a message."""
        absent = [
            name
            for name, there in (("FEAT_S2FWB", self.fwb), ("CTR_EL0.DIC", self.dic))
            if there is False
        ]
        return " and ".join(absent) or "FEAT_S2FWB or CTR_EL0.DIC"


def _read(vcpu: Vcpu, register: int) -> int | None:
    try:
        return vcpu.get_one_reg(register)
    except KvmError:
        return None
