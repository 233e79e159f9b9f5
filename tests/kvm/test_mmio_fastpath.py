"""The table of answers, without KVM."""

from __future__ import annotations

import pytest

from vmm.kvm.mmio_fastpath import MmioFastpath, Shadow, ToEventfd, Unchanged

BASE = 0x900_0000


def test_a_value_has_to_have_an_address() -> None:
    table = MmioFastpath([Shadow(BASE), Unchanged(BASE + 4, 0), ToEventfd(BASE + 8, -1)])
    table.set_value(BASE, 1)
    table.set_value(BASE + 4, 1)
    for address in (BASE + 1, BASE + 8, BASE + 12):
        with pytest.raises(ValueError, match=f"{address:#x}"):
            table.set_value(address, 1)
