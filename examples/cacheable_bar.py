"""Map a device BAR cacheable into a VM, know what was promised, and prove what was given.

    pyvmm lab exec gh200 -- python3 examples/cacheable_bar.py 0000:00:10.0 4

Each way it can fail says so in one line: no FWB (profile gh200-nofwb), a kernel that does not
know the capability (legacy-gh200), a region that is not cacheable (region 2).
"""

import os
import sys

from vmm.coherence.capability import HostCapability
from vmm.coherence.policy import Cache, Map, Refuse, Trap, decide, region_attribute
from vmm.coherence.prove import prove
from vmm.coherence.stage1 import Area, judge, look
from vmm.errors import VmmError
from vmm.kvm.slots import MemorySlots
from vmm.kvm.system import System
from vmm.vfio.device import open_device

GUEST_ADDRESS = 0x1_0000_0000


def _say(*words: object) -> None:
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


def main(bdf: str, index: int) -> None:
    """Map region *index* of the device at *bdf*."""
    with System.open() as kvm, open_device(bdf) as device, kvm.create_vm() as vm:
        capability = HostCapability.probe(kvm)  # on a scratch VM, never on the guest's
        _say("this host:  ", capability.support.value, "|", capability.evidence[0])

        device.enable_memory()
        with device.region(index).map() as mapping:
            # Its driver is the authority on its attributes: a load through it shows what they are.
            attribute = region_attribute(device.function.driver or "", index)
            attribute = judge(attribute, look([Area(0, mapping.size, mapping.host_address)]))
            _say("stage 1:    ", attribute.stage1.value, "|", attribute.because)

            match decide(attribute, capability, Cache.REQUIRE):  # before there is any slot
                case Refuse(because, remedy):
                    raise SystemExit(f"refused: {because}; {remedy}")
                case Trap():
                    raise SystemExit("nothing to map: that is for cache=forbid")
                case Map(flags, promise):
                    _say("promise:    ", promise.stage2.value, "|", promise.because)
            slots = MemorySlots(vm)
            slot = slots.add(GUEST_ADDRESS, mapping.size, mapping.host_address, flags)
            _say("memory slot:", slot)
            _say("verdict:    ", prove(kvm, mapping.host_address, mapping.size, flags=flags))
            slots.remove(slot)  # before its mapping goes


try:
    main(sys.argv[1], int(sys.argv[2]))
except (IndexError, ValueError):
    raise SystemExit("usage: cacheable_bar.py BDF REGION") from None
except (VmmError, OSError) as error:
    raise SystemExit(f"failed: {error}") from None
