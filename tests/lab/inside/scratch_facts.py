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
        # adr x0, . - str x30, [x0] - ret: what is executed makes its own address, and stores there.
        memory.view[0:12] = b"".join(
            word.to_bytes(4, "little") for word in (0x10000000, 0xF900001E, 0xD65F03C0)
        )
        before = bytes(memory.view)
        verdict = prove(system, address, SIZE)
        found["a store"] = {"type": verdict.memory_type.value, "evidence": verdict.evidence}
        found["unchanged"] = bytes(memory.view) == before
        del contents
    json.dump(found, sys.stdout)


main()
