"""Causes of failed ioctls about interrupts, eventfds and in-kernel devices.

Sources: Linux 7.3, and Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import errno as e
from typing import Final

from vmm.cause import Cause, Table, misses
from vmm.kvm.causes import checks

_MAIN: Final = "virt/kvm/kvm_main.c"
_EVENTFD: Final = "virt/kvm/eventfd.c"
_ARM: Final = "arch/arm64/kvm/arm.c"
_VGIC: Final = "arch/arm64/kvm/vgic/vgic-kvm-device.c"
_VGIC_INIT: Final = "arch/arm64/kvm/vgic/vgic-init.c"
_PMU: Final = "arch/arm64/kvm/pmu-emul.c"
_NOT_AN_EVENTFD: Final = Cause(
    "the descriptor is not an eventfd's", "use eventfd(2)", "eventfd_ctx_fdget (fs/eventfd.c)"
)

CAUSES: Final[Table] = {
    ("KVM_IOEVENTFD", e.EEXIST): (
        Cause(
            "an eventfd listens at this address already, for any value or the same",
            "remove that one first",
            f"ioeventfd_check_collision ({_EVENTFD})",
        ),
    ),
    ("KVM_IOEVENTFD", e.EINVAL): (
        Cause(
            "the length is none of 0, 1, 2, 4 and 8 bytes",
            "",
            f"kvm_assign_ioeventfd ({_EVENTFD})",
            check=misses("len", checks.LENGTHS),
        ),
        Cause(
            "a value is asked for (datamatch), but no length",
            "give the length of the store",
            f"kvm_assign_ioeventfd ({_EVENTFD})",
            check=checks.datamatch_without_length,
        ),
        _NOT_AN_EVENTFD,
    ),
    ("KVM_IOEVENTFD", e.ENOENT): (
        Cause(
            "no such eventfd listens there",
            "give what it was assigned with: address, length, value",
            f"kvm_deassign_ioeventfd_idx ({_EVENTFD})",
            certain=True,
        ),
    ),
    ("KVM_IOEVENTFD", e.ENOSPC): (
        Cause(
            "the VM has as many devices on this bus as KVM allows (1000; eventfds do not count)",
            "",
            f"kvm_io_bus_register_dev ({_MAIN})",
        ),
    ),
    ("KVM_IRQFD", e.EBUSY): (
        Cause(
            "this eventfd is bound to an interrupt already",
            "use one for each",
            f"kvm_irqfd_register ({_EVENTFD})",
            certain=True,
        ),
    ),
    ("KVM_IRQFD", e.EAGAIN): (
        Cause(
            "the VM has no interrupt controller, or it is not initialised yet",
            "KVM_DEV_ARM_VGIC_CTRL_INIT first",
            f"kvm_irqfd_assign ({_EVENTFD})",
        ),
    ),
    ("KVM_IRQFD", e.EINVAL): (_NOT_AN_EVENTFD,),
    **{
        (call, e.EBADF): (
            Cause("the eventfd is closed", "keep it open", certain=True, check=checks.is_open),
        )
        for call in ("KVM_IRQFD", "KVM_IOEVENTFD")
    },
    ("KVM_IRQ_LINE", e.ENXIO): (
        Cause(
            "the VM has no interrupt controller in the kernel",
            "create one",
            f"kvm_vm_ioctl_irq_line ({_ARM})",
        ),
    ),
    ("KVM_IRQ_LINE", e.EINVAL): (
        Cause(
            "the controller has no such interrupt, or there is no such vCPU",
            "bits 24-27 are the type, 16-23 the vCPU, 0-15 the number",
            f"kvm_vm_ioctl_irq_line ({_ARM})",
        ),
    ),
    ("KVM_SET_GSI_ROUTING", e.EINVAL): (
        Cause(
            "an entry's interrupt is past the last (KVM_CAP_IRQ_ROUTING), its kind or pin is "
            "unknown, or a pin's interrupt has two",
            "",
            "kvm_set_irq_routing (virt/kvm/irqchip.c)",
        ),
    ),
    ("KVM_CREATE_DEVICE", e.ENODEV): (
        Cause(
            "this host has no such device: its GIC cannot be or emulate this one",
            "KVM_CREATE_DEVICE_TEST asks for one without making it",
            f"kvm_ioctl_create_device ({_MAIN})",
        ),
    ),
    ("KVM_CREATE_DEVICE", e.EEXIST): (
        Cause("the VM has one already", "", f"kvm_vgic_create ({_VGIC_INIT})"),
    ),
    ("KVM_CREATE_DEVICE", e.EBUSY): (
        Cause(
            "a vCPU has run, or is in use",
            "create it before any vCPU runs",
            f"kvm_vgic_create ({_VGIC_INIT})",
        ),
    ),
    ("KVM_CREATE_DEVICE", e.E2BIG): (
        Cause(
            "the VM has more vCPUs than this controller serves",
            "use fewer, or a GICv3",
            f"kvm_vgic_create ({_VGIC_INIT})",
        ),
    ),
    ("KVM_SET_DEVICE_ATTR", e.ENXIO): (
        Cause(
            "the PMU's interrupt is not set (KVM_ARM_VCPU_PMU_V3_IRQ)",
            "set it before KVM_ARM_VCPU_PMU_V3_INIT",
            f"kvm_arm_pmu_v3_init ({_PMU})",
            check=checks.is_pmu_init,
        ),
        Cause("this kernel does not know the attribute", "", f"vgic_set_common_attr ({_VGIC})"),
    ),
    ("KVM_SET_DEVICE_ATTR", e.EEXIST): (
        Cause(
            "the address was set already, or ranges overlap",
            "",
            f"vgic_check_iorange ({_VGIC})",
        ),
    ),
    ("KVM_SET_DEVICE_ATTR", e.E2BIG): (
        Cause(
            "the address lies beyond the VM's IPA size",
            "place it lower",
            f"vgic_check_iorange ({_VGIC})",
        ),
    ),
    ("KVM_SET_DEVICE_ATTR", e.EINVAL): (
        Cause(
            "the number of interrupts is not a multiple of 32 from 64 to 1024",
            "",
            f"vgic_set_common_attr ({_VGIC})",
            check=checks.is_number_of_interrupts,
        ),
        Cause(
            "the address is not aligned: 64 KiB, 4 KiB with a GICv2",
            "align it",
            f"vgic_check_iorange ({_VGIC})",
            check=checks.on("Device"),
        ),
        Cause(
            "no such private interrupt, another than the other vCPUs', or no GIC is there",
            "the VM's GIC comes first",
            f"kvm_arm_pmu_v3_set_attr ({_PMU})",
            check=checks.on("Vcpu"),
        ),
    ),
    ("KVM_SET_DEVICE_ATTR", e.ENODEV): (
        Cause(
            "the vCPU has no PMU, or the GIC is not initialised yet",
            "KVM_ARM_VCPU_PMU_V3 in KVM_ARM_VCPU_INIT; KVM_DEV_ARM_VGIC_CTRL_INIT",
            f"kvm_arm_pmu_v3_set_attr ({_PMU})",
            check=checks.on("Vcpu"),
        ),
        Cause("the host's GIC cannot do it", "", f"kvm_vgic_addr ({_VGIC})"),
    ),
    ("KVM_SET_DEVICE_ATTR", e.EBUSY): (
        Cause(
            "it is set or initialised already",
            "",
            f"vgic_set_common_attr ({_VGIC})",
        ),
        Cause("a vCPU is in use", "stop vCPUs first", f"kvm_trylock_all_vcpus ({_MAIN})"),
    ),
    ("KVM_GET_DEVICE_ATTR", e.ENXIO): (
        Cause("this kernel does not know the attribute", "", f"vgic_get_common_attr ({_VGIC})"),
    ),
    ("KVM_GET_DEVICE_ATTR", e.EBUSY): (
        Cause(
            "a vCPU runs",
            "stop all first",
            "vgic_v3_attr_regs_access (arch/arm64/kvm/vgic/vgic-kvm-device.c)",
        ),
    ),
}
