"""Fixtures of the machine's tests: an event loop, and guest memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.virtio.ring_driver import Memory
from vmm.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Loop() as loop:
        yield loop


@pytest.fixture
def ram() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    memory.close()
