"""MSI and MSI-X vectors of a passed-through device, on a host that lacks something."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.recorded import Recorded
from vmm.errors import KernelError
from vmm.passthrough.interrupts import PassthroughInterrupts, Vectors
from vmm.pci.msix import Message
from vmm.vfio.irq import NO_EVENTFD, IrqIndex

MESSAGE = Message(0x0809_0040, 1)


class Host:
    """VFIO and KVM in one, which refuse the calls that a test names."""

    closed, bdf = False, "0000:01:00.0"

    def __init__(self) -> None:
        self.irqs = self
        self.refused: set[object] = set()
        self.attached: dict[int, int] = {}
        self.signalled: dict[int, int] = {}

    def irq(self, index: IrqIndex) -> Any:
        return SimpleNamespace(count=8, resizable=False)

    def signal(self, index: IrqIndex, fds: Sequence[int], start: int = 0) -> None:
        assert not self.signalled, "it wants to know how many there are, first"
        if len(fds) in self.refused:
            raise KernelError("VFIO_DEVICE_SET_IRQS", errno.ENOSPC)
        self.signalled = {number: fd for number, fd in enumerate(fds) if fd != NO_EVENTFD}

    def disable(self, index: IrqIndex) -> None:
        self.signalled = {}

    def attach(self, vector: int, fd: int) -> None:
        if "attach" in self.refused:
            raise KernelError("KVM_IRQFD", errno.ENOMEM)
        self.attached[vector] = fd

    def detach(self, fd: int) -> None:
        raise NotImplementedError

    def update(self, messages: Mapping[int, Message | None]) -> None:
        pass

    def pending(self, vector: int) -> bool:
        return False


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def vectors(host: Host) -> Iterator[Vectors]:
    with PassthroughInterrupts(host, Recorded(), {IrqIndex.MSIX: host}) as interrupts:  # type: ignore[arg-type]
        yield interrupts.vectors(IrqIndex.MSIX)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_vector_that_kvm_refused_is_not_taken_for_one_that_works(
    host: Host, vectors: Vectors
) -> None:
    before = open_files()
    host.refused = {"attach"}
    vectors.update({0: MESSAGE})
    assert host.signalled == {}
    assert open_files() == before
    host.refused = set()
    vectors.update({0: MESSAGE})
    assert host.signalled == host.attached != {}


def test_vectors_that_work_go_on_when_there_can_be_no_more(host: Host, vectors: Vectors) -> None:
    vectors.update({0: MESSAGE, 1: MESSAGE})
    host.refused = {5}
    vectors.update({4: MESSAGE})
    assert set(host.signalled) == {0, 1}
    assert os.eventfd_read(host.signalled[0]) == 1, "what came meanwhile is not lost"
    host.refused = set()
    vectors.update({4: MESSAGE})
    assert set(host.signalled) == {0, 1, 4}
