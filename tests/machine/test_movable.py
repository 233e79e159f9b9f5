"""What a snapshot or a migration cannot have is refused by name, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmm.config import MachineConfig
from vmm.config.bar import BarConfig
from vmm.config.firmware import FlashConfig
from vmm.config.vfio import VfioConfig
from vmm.errors import UserError
from vmm.machine.snapshot import check
from vmm.virtio.balloon import Balloon
from vmm.virtio.block.device import Blk
from vmm.virtio.block.vhost_user import VhostUserBlk
from vmm.virtio.console.device import Console
from vmm.virtio.device import VirtioDevice
from vmm.virtio.fs.device import Fs
from vmm.virtio.net.device import Net
from vmm.virtio.net.vhost_user import VhostUserNet
from vmm.virtio.pmem import Pmem
from vmm.virtio.rng import Rng
from vmm.virtio.vsock import Vsock

IMAGE = Path("/guest")
BDF = "0000:00:02.0"


@pytest.mark.parametrize(
    ("parts", "option"),
    [
        ({"image": IMAGE, "vfio": (VfioConfig(BDF),)}, "--vfio"),
        ({"image": IMAGE, "bars": (BarConfig(BDF, 2),)}, "--bar"),
        ({"firmware": Path("/code")}, "--firmware"),
        ({"firmware": Path("/code"), "flash": FlashConfig(Path("/vars"))}, "--firmware"),
    ],
    ids=["vfio", "bar", "firmware", "flash"],
)
def test_a_configuration_is_refused(parts: dict[str, Any], option: str) -> None:
    with pytest.raises(UserError, match=f"^migrate: {option}"):
        check(MachineConfig(**parts), None, "migrate")


def test_all_that_is_wrong_is_counted() -> None:
    config = MachineConfig(
        image=IMAGE, vfio=(VfioConfig("0000:00:03.0"),), bars=(BarConfig(BDF, 2),)
    )
    with pytest.raises(UserError, match=r"--vfio: .* \(and 1 more\)"):
        check(config, None)


def test_a_plain_machine_is_not() -> None:
    check(MachineConfig(image=IMAGE), None)


@pytest.mark.parametrize("kind", [Net, VhostUserNet, VhostUserBlk, Fs, Vsock, Pmem])
def test_a_device_with_state_elsewhere_cannot_move(kind: type[VirtioDevice]) -> None:
    """The kernel's vhost, a daemon, or a file that the guest writes as memory has it."""
    assert kind.unmovable


@pytest.mark.parametrize("kind", [Balloon, Blk, Console, Rng])
def test_a_device_of_pyvmm_can(kind: type[VirtioDevice]) -> None:
    assert not kind.unmovable
