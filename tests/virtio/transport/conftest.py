"""Rings of both formats."""

from __future__ import annotations

import pytest

from tests.virtio.ring_driver import KINDS, Memory, PackedDriver, SplitDriver


@pytest.fixture(params=KINDS)
def ring(request: pytest.FixtureRequest, memory: Memory) -> SplitDriver | PackedDriver:
    return KINDS[request.param](memory)
