"""The state of a machine, except for its memory: what a snapshot's manifest has under ``state``."""

from __future__ import annotations

from dataclasses import dataclass

from vmm.arm64.gic_state import GicState  # noqa: TC001  (typed_json reads the annotations)
from vmm.arm64.vcpu_state import VcpuState  # noqa: TC001
from vmm.devices.pl011 import Pl011State  # noqa: TC001
from vmm.devices.pl031 import Pl031State  # noqa: TC001
from vmm.devices.pl061 import Pl061State  # noqa: TC001
from vmm.virtio.state import MmioState, PciState  # noqa: TC001


@dataclass(frozen=True)
class MachineState:
    """Processor, interrupt controller and devices.

    uart, rtc, gpio  the board's PL011, PL031 and PL061
    vmgenid    the VM generation ID
    mmio, pci  the virtio devices of each transport, in order
    """

    vcpus: tuple[VcpuState, ...]
    gic: GicState
    uart: Pl011State
    rtc: Pl031State
    gpio: Pl061State
    vmgenid: bytes
    mmio: tuple[MmioState, ...]
    pci: tuple[PciState, ...]
