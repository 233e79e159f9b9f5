"""A DAX file is a guest's memory only where a scratch guest has proved it cacheable."""

from __future__ import annotations

import pytest

from vmm.coherence import dax
from vmm.coherence.verdict import MemoryType, Verdict
from vmm.errors import HostError

CACHEABLE = (MemoryType.FORCED_WRITE_BACK, MemoryType.GUEST_DECIDES)


@pytest.mark.parametrize("kind", MemoryType)
def test_only_cacheable_memory_is_let_through(kind: MemoryType) -> None:
    verdict = Verdict(kind, ("as it was seen",))
    if kind in CACHEABLE:
        dax.judge("--pmem file", verdict)
    else:
        with pytest.raises(HostError, match=r"^--pmem file: .*DAX.*as it was seen"):
            dax.judge("--pmem file", verdict)
