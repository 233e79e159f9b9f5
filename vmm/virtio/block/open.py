"""Open what ``--disk`` asks for: raw images in C, other formats through qemu-storage-daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.errors import UserError
from vmm.virtio.block.device import Blk
from vmm.virtio.block.image_format import with_format
from vmm.virtio.block.raw_image import CACHE_MODES, RawDisk

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.config.disk import DiskConfig
    from vmm.events import Events
    from vmm.virtio.device import VirtioDevice
    from vmm.virtio.queue import MemoryMap


def open_disk(  # noqa: PLR0913  (what a disk has)
    name: str,
    config: DiskConfig,
    memory: MemoryMap,
    events: Events,
    say: Callable[[str], object] = lambda _line: None,
    *,
    locked: bool = True,
) -> VirtioDevice:
    """Return the block device that *config* asks for. Raises `UserError` and `HostError`.

    *say* is called with a line for the user if a daemon serves it that has no walls; *locked*: see
    `vmm.virtio.block.raw_image.RawDisk`.
    """
    config = with_format(config)
    if config.format == "raw":
        return _open_raw(name, config, memory, events, locked=locked)
    return _open_daemon(name, config, memory, events, say)


def _open_raw(
    name: str, config: DiskConfig, memory: MemoryMap, events: Events, *, locked: bool
) -> VirtioDevice:
    backing = RawDisk(
        config.path,
        read_only=config.read_only,
        option=f"--disk {config.path}",
        cache=CACHE_MODES[config.cache],
        locked=locked,
    )
    try:
        return Blk(
            name,
            memory,
            events,
            backing,
            queues=config.queues,
            serial=config.serial,
            guessed=config.guessed,
        )
    except BaseException:
        backing.close()
        raise


def _open_daemon(
    name: str,
    config: DiskConfig,
    memory: MemoryMap,
    events: Events,
    say: Callable[[str], object],
) -> VirtioDevice:
    from vmm.virtio.block import storage_daemon
    from vmm.virtio.block.vhost_user import VhostUserBlk

    image = config.format
    if config.cache not in ("auto", "writeback", "writethrough"):
        raise UserError(
            f"--disk {config.path}: cache={config.cache} is for raw disks, and this is {image}",
            "leave it out, or use cache=writeback or cache=writethrough",
        )
    if config.serial:
        raise UserError(
            f"--disk {config.path}: only a raw disk can have a serial number, and this is {image}",
            "leave it out",
        )
    service = storage_daemon.service(config, events)
    if line := service.notice:
        say(line)
    durable = config.cache != "writeback"
    return VhostUserBlk(name, memory, events, service, queues=config.queues, durable=durable)
