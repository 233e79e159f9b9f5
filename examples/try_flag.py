"""Try a new flag: see which flags of a memory slot this kernel takes, and what it says.

    pyvmm lab exec fwb -- python3 examples/try_flag.py
    pyvmm lab exec rfc -- python3 examples/try_flag.py 3

Without an argument all 32 bits are tried; with one, that bit, and the errno is explained. A scratch
VM takes the attempts, never a guest's: a slot that was accepted once may change what KVM does next.
"""

import vmm
from vmm._native import lib
from vmm.kvm.fd import KvmError
from vmm.kvm.system import System
from vmm.memory import Mapping

NAMES = {
    lib.KVM_MEM_LOG_DIRTY_PAGES: "KVM_MEM_LOG_DIRTY_PAGES",
    lib.KVM_MEM_READONLY: "KVM_MEM_READONLY",
}
BASE, SIZE = 0x4000_0000, 0x1_0000


def attempt(kvm: System, flags: int) -> KvmError | None:
    """Register anonymous memory with *flags* on a VM of its own; return the error, if any."""
    with Mapping.anonymous(SIZE) as memory, kvm.create_vm() as vm:
        try:
            vm.set_user_memory_region(0, flags, BASE, SIZE, memory.region(BASE).host_address)
        except KvmError as error:
            return error
        return None


with vmm.program("[BIT]") as arguments:
    chosen = [int(each) for each in arguments if each.isdigit()]
    if len(chosen) < len(arguments):
        raise SystemExit("usage: try_flag.py [BIT]")
    with System.open() as kvm:
        for bit in chosen:
            print(f"bit {bit}:", attempt(kvm, 1 << bit) or "taken")
        if not chosen:
            for bit in range(32):
                if attempt(kvm, 1 << bit) is None:
                    print(f"bit {bit}: taken", NAMES.get(1 << bit, ""))
            print("all others are refused")
