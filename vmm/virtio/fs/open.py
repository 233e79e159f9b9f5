"""Open what ``--share`` asks for: a file system device, served by virtiofsd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.virtio.fs import virtiofsd
from vmm.virtio.fs.device import Fs

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.config.share import ShareConfig
    from vmm.events import Events
    from vmm.virtio.queue import MemoryMap


def open_share(
    name: str,
    config: ShareConfig,
    memory: MemoryMap,
    events: Events,
    say: Callable[[str], object],
) -> Fs:
    """Return the file system device that *config* asks for. Raises `UserError`, `HostError`.

    *say* is called with a line for the user if virtiofsd has no sandbox.
    """
    device = Fs(name, memory, events, virtiofsd.service(config, events), config.tag)
    if line := virtiofsd.notice(config):
        say(line)
    return device
