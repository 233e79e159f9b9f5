"""vCPU features, PMU, affinity, and the registers with which a kernel is entered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vmm._native import ffi, lib
from vmm.arm64 import layout, registers
from vmm.kvm.capability import Cap

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from vmm.kvm.vcpu import Vcpu
    from vmm.kvm.vm import Vm

OPTIONAL: Final[Mapping[str, Mapping[Cap, int]]] = {
    "PMU_V3": {Cap.ARM_PMU_V3: lib.KVM_ARM_VCPU_PMU_V3},
    "SVE": {Cap.ARM_SVE: lib.KVM_ARM_VCPU_SVE},
    # KVM refuses one of the two without the other (arch/arm64/kvm/reset.c).
    "PTRAUTH": {
        Cap.ARM_PTRAUTH_ADDRESS: lib.KVM_ARM_VCPU_PTRAUTH_ADDRESS,
        Cap.ARM_PTRAUTH_GENERIC: lib.KVM_ARM_VCPU_PTRAUTH_GENERIC,
    },
}
"""Features that guests get where the host has them: capabilities, and KVM_ARM_VCPU_* for each."""


class ProcessorModel:
    """The model of all vCPUs of a VM: the host's CPU, with every feature KVM can virtualise.

    *optional*: which of `OPTIONAL`'s features to leave; None: all that the host has.
    *vector_length*: the longest SVE vector in bytes; None: the host's.
    """

    def __init__(
        self,
        vm: Vm,
        optional: Collection[str] | None = None,
        vector_length: int | None = None,
    ) -> None:
        self._init: Any = vm.preferred_target()
        self._vector_length = vector_length
        self.optional = frozenset(
            name
            for name, needs in OPTIONAL.items()
            if (optional is None or name in optional)
            and all(vm.check_extension(capability) > 0 for capability in needs)
        )
        """The optional features that its vCPUs have."""
        chosen = (bit for name in self.optional for bit in OPTIONAL[name].values())
        self.features = frozenset({lib.KVM_ARM_VCPU_PSCI_0_2, *chosen})

    @property
    def has_pmu(self) -> bool:
        """Whether guests get performance counters."""
        return lib.KVM_ARM_VCPU_PMU_V3 in self.features

    def initialise(self, vcpu: Vcpu, *, powered_off: bool) -> None:
        """Initialise *vcpu*; with *powered_off* it waits for PSCI CPU_ON. Raises `KvmError`."""
        features = self.features | ({lib.KVM_ARM_VCPU_POWER_OFF} if powered_off else set())
        for index in range(len(self._init.features)):
            bits = (1 << feature % 32 for feature in features if feature // 32 == index)
            self._init.features[index] = sum(bits)
        vcpu.arm_vcpu_init(self._init)
        if lib.KVM_ARM_VCPU_SVE in self.features:
            if self._vector_length is not None:
                self._limit_vectors(vcpu, self._vector_length)
            vcpu.arm_vcpu_finalize(lib.KVM_ARM_VCPU_SVE)

    @staticmethod
    def _limit_vectors(vcpu: Vcpu, longest: int) -> None:
        """Leave *vcpu* SVE vectors of up to *longest* bytes (KVM_REG_ARM64_SVE_VLS)."""
        lengths = vcpu.get_one_reg(registers.SVE_VECTOR_LENGTHS)
        vcpu.set_one_reg(registers.SVE_VECTOR_LENGTHS, lengths & ((1 << longest // 16) - 1))

    def initialise_pmu(self, vcpu: Vcpu) -> None:
        """Set *vcpu*'s PMU interrupt, after the GIC is initialised. Raises `KvmError`."""
        if self.has_pmu:
            group = lib.KVM_ARM_VCPU_PMU_V3_CTRL
            interrupt = ffi.new("int *", layout.FIRST_PPI + layout.PPI_PMU)
            vcpu.set_attr(group, lib.KVM_ARM_VCPU_PMU_V3_IRQ, interrupt)
            vcpu.set_attr(group, lib.KVM_ARM_VCPU_PMU_V3_INIT)


def affinity(vcpu: Vcpu) -> int:
    """Return the affinity fields of *vcpu*'s MPIDR_EL1, its name in PSCI and device tree."""
    return vcpu.get_one_reg(registers.MPIDR_EL1) & registers.MPIDR_AFFINITY


def set_registers(vcpu: Vcpu, values: Mapping[int, int]) -> None:
    """Set registers: *values* maps ids to values. Raises `KvmError`."""
    for register, value in values.items():
        vcpu.set_one_reg(register, value)
