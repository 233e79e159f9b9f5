"""Which memory the survey may write to: it goes by the measurement, not by the driver's name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from tests.coherence.hosts import HOSTS
from vmm._native import lib
from vmm.address_range import AddressRange
from vmm.coherence import stage1
from vmm.coherence.policy import NVGRACE
from vmm.passthrough.memslot_cases import Regions
from vmm.vfio.fd import VfioFd
from vmm.vfio.region import VfioRegion
from vmm.vfio.region_info import RegionInfo

SIZE = 4 << 20
BDF = "0000:01:00.0"
FLAGS = lib.VFIO_REGION_INFO_FLAG_READ | lib.VFIO_REGION_INFO_FLAG_WRITE
DEVICE, NORMAL, UNCACHED, CACHEABLE, NOTHING = (
    stage1.Evidence(says, says.value)
    for says in (
        stage1.Says.DEVICE,
        stage1.Says.NORMAL,
        stage1.Says.UNCACHED,
        stage1.Says.CACHEABLE,
        stage1.Says.NOTHING,
    )
)


@pytest.fixture
def owned() -> Iterator[ExitStack]:
    with ExitStack() as owned:
        yield owned


@pytest.mark.parametrize(
    ("host", "driver", "loads", "answers", "may_be_written", "cacheable"),
    [
        ("mainline", NVGRACE, [NORMAL], [CACHEABLE], True, True),
        ("mainline", NVGRACE, [NORMAL], [], False, False),
        ("mainline", NVGRACE, [NORMAL], [NOTHING], False, False),
        ("mainline", NVGRACE, [NORMAL], [UNCACHED], False, False),
        ("mainline", NVGRACE, [DEVICE], [], False, False),  # no usemem: a plain BAR
        ("mainline", NVGRACE, [NOTHING], [], False, False),
        ("mainline", NVGRACE, [NOTHING], [UNCACHED], False, False),
        ("mainline", "some-vfio-pci", [NORMAL], [], False, False),
        (
            "mainline",
            "some-vfio-pci",
            [NORMAL],
            [CACHEABLE],
            False,
            True,
        ),  # its own reads may be uncached
        ("mainline", "vfio-pci", [DEVICE], [], False, False),
        ("mainline", "vfio-pci", [NORMAL], [], False, False),
        ("legacy", NVGRACE, [NORMAL], [], True, True),
        ("legacy", NVGRACE, [NOTHING], [], False, False),
        ("legacy", NVGRACE, [DEVICE], [], False, False),
    ],
)
def test_only_what_is_measured_to_be_cacheable_memory_is_written(  # noqa: PLR0917  (a table)
    owned: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    driver: str,
    loads: list[stage1.Evidence],
    answers: list[stage1.Evidence],
    may_be_written: bool,  # noqa: FBT001  (a parameter of the test)
    cacheable: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(stage1, "look", lambda _areas: loads)
    monkeypatch.setattr(stage1, "ask", lambda *_, **__: answers)
    fd = os.memfd_create("device")
    os.ftruncate(fd, SIZE)
    file = owned.enter_context(VfioFd(fd, BDF))
    info = RegionInfo(4, SIZE, 0, FLAGS, (AddressRange(0, SIZE),))
    region = VfioRegion(BDF, info, file)
    device: Any = SimpleNamespace(
        function=SimpleNamespace(driver=driver), region=lambda _index: region
    )
    system: Any = None
    case = Regions(device, system, HOSTS[host]).case(4)
    assert case.cacheable is cacheable
    with case.make() as memory:
        assert (memory.contents is not None) is may_be_written
