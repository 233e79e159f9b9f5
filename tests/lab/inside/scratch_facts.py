"""Run in a lab host: print what scratch guests of each kind say of ordinary memory, as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from vmm.coherence.prove import prove
from vmm.coherence.scratch import Features, ScratchGuest
from vmm.coherence.scratch_table import Granule
from vmm.errors import HostError
from vmm.kvm.system import System
from vmm.memory import Mapping, Region
from vmm.passthrough.memslot_cases import Bytes

SIZE = 4 << 20
KINDS = {
    **{granule.name: Features(granule=granule) for granule in Granule},
    "mte": Features(mte=True),
}


def main() -> None:
    """Print the memory type, or the error, by kind of guest; and the granule that is chosen."""
    with System.open() as system, Mapping.anonymous(SIZE) as memory:
        address, contents = Region(0, memory.view).host_address, Bytes(memory.view)
        with ScratchGuest(system, address, SIZE) as guest:
            found: dict[str, object] = {"chosen": guest.granule.name}
            found["one run"] = asdict(guest.run("aligned", 0))["fate"].value
        for name, features in KINDS.items():
            try:
                verdict = prove(system, address, SIZE, contents=contents, features=features)
                found[name] = verdict.memory_type.value
            except HostError as error:
                found[name] = str(error)
        del contents
    json.dump(found, sys.stdout)


main()
