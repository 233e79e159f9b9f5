"""Causes of failed ioctls about VMs, vCPUs and their registers.

Sources: Linux 7.3, and Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import errno as e
from typing import Final

from vmm.cause import Cause, Table, misses, zero
from vmm.kvm.causes import checks

_MAIN: Final = "virt/kvm/kvm_main.c"
_ARM: Final = "arch/arm64/kvm/arm.c"
_MMU: Final = "arch/arm64/kvm/mmu.c"
_GUEST: Final = "arch/arm64/kvm/guest.c"
_VGIC3: Final = "arch/arm64/kvm/vgic/vgic-v3.c"
_PMU: Final = "arch/arm64/kvm/pmu-emul.c"
_TIMER: Final = "arch/arm64/kvm/arch_timer.c"
_MMIO: Final = "arch/arm64/kvm/mmio.c"
_FIRST_RUN: Final = f"kvm_arch_vcpu_run_pid_change ({_ARM})"
_FEATURES: Final = f"kvm_vcpu_init_check_features ({_ARM})"

CAUSES: Final[Table] = {
    ("KVM_CREATE_VM", e.EINVAL): (
        Cause(
            "the type asks for an IPA size that the host does not have: it is in bits, from 32 up "
            "to KVM_CAP_ARM_VM_IPA_SIZE",
            "ask for fewer",
            f"kvm_init_ipa_range ({_MMU})",
            check=checks.too_many_bits,
        ),
        Cause(
            "the kernel knows no such machine type",
            "use 0",
            "kvm_arch_init_vm (arch/x86/kvm/x86.c)",
            check=misses("type", (0,)),
        ),
        Cause(
            "KVM's default IPA size, 40 bits, is more than the host has",
            "give the size in the type",
            f"kvm_init_ipa_range ({_MMU})",
            check=zero("type"),
        ),
    ),
    ("KVM_CREATE_VCPU", e.EINVAL): (
        Cause(
            "the id is beyond the last (KVM_CAP_MAX_VCPU_ID)",
            "number vCPUs from 0",
            f"kvm_vm_ioctl_create_vcpu ({_MAIN})",
            check=checks.at_least("vcpu_id", checks.MAX_VCPU_ID),
        ),
        Cause(
            "the VM has as many vCPUs as its interrupt controller serves (8 with a GICv2)",
            "use fewer, or a GICv3",
            f"kvm_arch_vcpu_precreate ({_ARM})",
        ),
    ),
    ("KVM_CREATE_VCPU", e.EEXIST): (
        Cause(
            "a vCPU with this id exists",
            "use another id",
            f"kvm_vm_ioctl_create_vcpu ({_MAIN})",
            certain=True,
        ),
    ),
    ("KVM_CREATE_VCPU", e.EBUSY): (
        Cause(
            "the interrupt controller is initialised already",
            "create all vCPUs before KVM_DEV_ARM_VGIC_CTRL_INIT",
            f"kvm_arch_vcpu_precreate ({_ARM})",
        ),
    ),
    ("KVM_ENABLE_CAP", e.EINVAL): (
        Cause(
            "this kernel or host does not have the capability, it is not one to enable, or it is "
            "too late: some want a VM without vCPUs",
            "KVM_CHECK_EXTENSION on the VM tells whether it is there",
            f"kvm_vm_ioctl_enable_cap ({_ARM})",
        ),
    ),
    ("KVM_ARM_VCPU_INIT", e.EINVAL): (
        Cause(
            "the host's CPU lacks a feature that is asked for",
            "ask for those whose capability is not 0",
            _FEATURES,
            check=checks.feature_is_optional,
        ),
        Cause(
            "one kind of pointer authentication is asked for without the other",
            "ask for both",
            _FEATURES,
            check=checks.half_of_pointer_authentication,
        ),
        Cause(
            "the features differ from those of the VM's other vCPUs, or of this one before",
            "ask for the same",
            f"__kvm_vcpu_set_target ({_ARM})",
        ),
        Cause(
            "the target is not that of this host's CPU",
            "use KVM_ARM_PREFERRED_TARGET's",
            f"kvm_vcpu_set_target ({_ARM})",
        ),
    ),
    ("KVM_ARM_VCPU_INIT", e.ENOENT): (
        Cause("this kernel does not know a feature", "leave it out", _FEATURES),
    ),
    ("KVM_ARM_VCPU_FINALIZE", e.EPERM): (
        Cause(
            "the feature was finalised already",
            "",
            "kvm_arm_vcpu_finalize (arch/arm64/kvm/reset.c)",
        ),
    ),
    ("KVM_ARM_VCPU_FINALIZE", e.EINVAL): (
        Cause(
            "the vCPU was not initialised with this feature",
            "add it to KVM_ARM_VCPU_INIT",
            "kvm_arm_vcpu_finalize (arch/arm64/kvm/reset.c)",
        ),
    ),
    ("KVM_GET_ONE_REG", e.ENOENT): (
        Cause(
            "this vCPU has no such register",
            "KVM_GET_REG_LIST tells which it has",
            "kvm_sys_reg_get_user (arch/arm64/kvm/sys_regs.c)",
        ),
    ),
    ("KVM_SET_ONE_REG", e.ENOENT): (
        Cause(
            "this vCPU has no such register",
            "KVM_GET_REG_LIST tells which it has",
            "kvm_sys_reg_set_user (arch/arm64/kvm/sys_regs.c)",
        ),
    ),
    ("KVM_SET_ONE_REG", e.EINVAL): (
        Cause(
            "the register does not take this value: of an ID register, only fields in "
            "KVM_ARM_GET_REG_WRITABLE_MASKS change, and only to what the host can do",
            "",
            "set_id_reg (arch/arm64/kvm/sys_regs.c)",
        ),
        Cause("the id is not one of arm64's", "", f"kvm_arm_set_reg ({_GUEST})"),
    ),
    ("KVM_SET_ONE_REG", e.EBUSY): (
        Cause(
            "the VM has run: ID registers and firmware registers are fixed",
            "set them before the first KVM_RUN",
            "set_id_reg (arch/arm64/kvm/sys_regs.c)",
        ),
    ),
    **{
        (call, e.EPERM): (
            Cause(
                "SVE: vector lengths are set before KVM_ARM_VCPU_FINALIZE, registers after",
                "",
                f"set_sve_vls ({_GUEST})",
            ),
        )
        for call in ("KVM_SET_ONE_REG", "KVM_GET_ONE_REG")
    },
    ("KVM_RUN", e.ENOEXEC): (
        Cause("KVM_ARM_VCPU_INIT has not been done", "", _FIRST_RUN, certain=True),
    ),
    ("KVM_RUN", e.EPERM): (
        Cause(
            "a feature was not finalised (SVE)",
            "KVM_ARM_VCPU_FINALIZE",
            _FIRST_RUN,
            certain=True,
        ),
    ),
    ("KVM_RUN", e.ENXIO): (
        Cause(
            "the GIC has no address: its distributor's, or a vCPU's redistributor's",
            "KVM_DEV_ARM_VGIC_GRP_ADDR",
            f"vgic_v3_map_resources ({_VGIC3})",
        ),
    ),
    ("KVM_RUN", e.EBUSY): (
        Cause(
            "the GICv3 is not initialised",
            "KVM_DEV_ARM_VGIC_CTRL_INIT",
            f"vgic_v3_map_resources ({_VGIC3})",
        ),
    ),
    ("KVM_RUN", e.EINVAL): (
        Cause(
            "the vCPU has a PMU that is not initialised",
            "KVM_ARM_VCPU_PMU_V3_INIT",
            f"kvm_arm_pmu_v3_enable ({_PMU})",
        ),
        Cause(
            "the GIC's frames overlap",
            "place them apart",
            f"vgic_v3_map_resources ({_VGIC3})",
        ),
        Cause(
            "vCPUs have different interrupts for their timers",
            "give all the same",
            f"kvm_timer_enable ({_TIMER})",
        ),
    ),
    ("KVM_RUN", e.EFAULT): (
        Cause(
            "the guest touched memory that the host could not fault in: its mapping is gone, its "
            "device's memory is off, or an unaligned access met Device memory at stage 2 (the "
            "host's log then says 'Unsupported FSC')",
            "",
            f"user_mem_abort ({_MMU})",
        ),
    ),
    ("KVM_RUN", e.ENOMEM): (
        Cause("the host is out of memory, for stage-2 tables for example", "free some"),
    ),
    ("KVM_RUN", e.ENOSYS): (
        Cause(
            "the guest's access could not be decoded (no valid syndrome)",
            "KVM_CAP_ARM_NISV_TO_USER makes it an exit",
            f"io_mem_abort ({_MMIO})",
            certain=True,
        ),
    ),
}
