"""The state of a virtio device, its queues and its transport, as values.

What is in guest memory, such as the rings themselves, is not here. A queue has no chain in flight
when its state is taken: the device has returned it, or put it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vmm.typed_json import Hex  # noqa: TC001  (it reads the annotations)


@dataclass(frozen=True)
class RingState:
    """Where a live ring goes on.

    A split ring's indices run freely; a packed ring's are slots, each with a wrap counter (2.8.1).
    """

    next_avail: int
    next_used: int
    avail_wrap: int
    used_wrap: int


@dataclass(frozen=True)
class QueueState:
    """A queue as the driver set it up: where its areas are, and *ring* once it is ready."""

    size: int
    descriptors: Hex
    driver: Hex
    device: Hex
    ring: RingState | None


@dataclass(frozen=True)
class DeviceState:
    """A device.

    device_id   its type (section 5)
    status      the device status field (2.1)
    accepted    the features that the driver accepted
    generation  of the configuration (2.5)
    own         what its kind has besides, a `VirtioDevice.OwnState`
    """

    device_id: int
    status: Hex
    accepted: Hex
    generation: int
    queues: tuple[QueueState, ...]
    own: Any


@dataclass(frozen=True)
class SelectorState:
    """The selectors of a transport: two words of features, and a queue."""

    device_word: int
    driver_word: int
    queue: int


@dataclass(frozen=True)
class MmioState:
    """A device on virtio-mmio; *interrupt* is InterruptStatus."""

    device: DeviceState
    selectors: SelectorState
    interrupt: Hex


@dataclass(frozen=True)
class PciState:
    """A device on virtio-pci.

    config    configuration space
    msix      MSI-X's table; Message Control is in *config*
    vectors   of each queue, then the configuration's
    isr       ISR status
    """

    device: DeviceState
    selectors: SelectorState
    config: bytes
    msix: bytes
    vectors: tuple[int, ...]
    isr: Hex
