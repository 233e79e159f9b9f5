"""Causes of a failed KVM ioctl: KVM answers with an errno and nothing else.

`vmm.coherence` knows more about memory slots of devices.
"""

from __future__ import annotations

import errno as e
from typing import TYPE_CHECKING, Final

from vmm import cause
from vmm.cause import Cause, General, Table
from vmm.kvm.causes import interrupts, memory, vcpu

if TYPE_CHECKING:
    from vmm.cause import FailedCall

CAUSES: Final[Table] = {**vcpu.CAUSES, **memory.CAUSES, **interrupts.CAUSES}

_MAIN: Final = "virt/kvm/kvm_main.c"

GENERAL: Final[General] = {
    **cause.GENERAL,
    e.EIO: (
        Cause(
            "another process opened this VM: its descriptors work only where it was created",
            "open it in the process that uses it",
            f"kvm_vm_ioctl, kvm_vcpu_ioctl ({_MAIN})",
        ),
        Cause(
            "KVM has given the VM up after a bug",
            "the host's log says which",
            f"kvm_vm_ioctl, kvm_vcpu_ioctl ({_MAIN})",
        ),
    ),
}
"""Causes of an errno, whatever the ioctl."""


def causes(call: FailedCall) -> list[Cause]:
    """Return what *call* may have failed from, the likeliest first."""
    return cause.find(call, CAUSES, GENERAL)
