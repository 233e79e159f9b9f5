"""Run in a lab host: print what is measured of the host's mappings of a device, as JSON.

python3 - BDF REGION...

The lab's kernels have no VFIO driver that pyvmm does not know. So each region is measured twice:
with what pyvmm knows of its driver, and with `region_attribute`, where it reads the driver's name,
knowing nothing of it. All else is real.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING
from unittest.mock import patch

from vmm.coherence import stage1
from vmm.coherence.capability import HostCapability
from vmm.coherence.policy import Map, region_attribute
from vmm.config.bar import BarConfig
from vmm.errors import HostError
from vmm.kvm.system import System
from vmm.passthrough import region_memory
from vmm.passthrough.region_memory import RegionMemory
from vmm.vfio.config import COMMAND_MEMORY
from vmm.vfio.device import open_device

if TYPE_CHECKING:
    from vmm.vfio.device import VfioDevice

BDF, *REGIONS = sys.argv[1:]


def looks(device: VfioDevice, region: int) -> dict[str, list[str]]:
    """Return what loads say while the device's memory is on, and while it is off."""
    device.enable_memory()
    with device.region(region).map() as mapping:
        area = stage1.Area(*mapping.area, mapping.host_address)
        on = stage1.look([area])
        device.config.clear_command(COMMAND_MEMORY)
        off = stage1.look([area])
    return {"on": [one.says.name for one in on], "off": [one.says.name for one in off]}


def measured(system: System, device: VfioDevice, region: int) -> dict[str, object]:
    """Return the attribute that the region is given, what it is promised, and the verdict."""
    capability = HostCapability.probe(system)
    try:
        made = RegionMemory(BarConfig(BDF, region), device, system, capability)
    except HostError as error:
        return {"refused": str(error)}
    with made:
        promise = made.decision.promise.stage2.name if isinstance(made.decision, Map) else "none"
        return {
            "stage1": made.attribute.stage1.name,
            "because": made.attribute.because,
            "promise": promise,
            "verdicts": [verdict.memory_type.name for verdict in made.verify()],
        }


def main() -> None:
    """Print what is found."""
    found = {}
    with System.open() as system, open_device(BDF) as device:
        for region in map(int, REGIONS):
            known = measured(system, device, region)
            unheard_of = region_attribute("unheard-of", region)
            with patch.object(region_memory, "region_attribute", return_value=unheard_of):
                unknown = measured(system, device, region)
            found[region] = {
                **looks(device, region),
                "known driver": known,
                "unknown driver": unknown,
            }
    sys.stdout.write(json.dumps(found))


main()
