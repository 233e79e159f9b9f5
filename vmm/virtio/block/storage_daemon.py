"""Serve disk images of other formats than raw with qemu-storage-daemon.

It is QEMU's block layer as a program of its own, in Debian's package qemu-utils.
"""

from __future__ import annotations

import json
import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from vmm.errors import HostError, UserError
from vmm.virtio.block.image_files import image_files
from vmm.virtio.vhost.daemon import find
from vmm.virtio.vhost.service import Service

if TYPE_CHECKING:
    from vmm.config.disk import DiskConfig
    from vmm.events import Events

PROGRAM: Final = "qemu-storage-daemon"
PACKAGE: Final = "qemu-utils (in Debian 12: qemu-system-common)"

DRIVERS: Final = {"qcow2": "qcow2", "vmdk": "vmdk", "vhdx": "vhdx", "vhd": "vpc"}
"""QEMU's block drivers for our names of formats."""


def service(config: DiskConfig, events: Events) -> Service:
    """Return what starts a daemon that serves the disk *config*.

    Raises `UserError` if the image does not exist, `HostError` if the program does not.
    """
    what = f"--disk {config.path}"
    path = os.path.abspath(config.path)  # noqa: PTH100  (keeps symbolic links, as the user gave them)
    try:
        driver = "host_device" if stat.S_ISBLK(os.stat(path).st_mode) else "file"  # noqa: PTH116
    except OSError as error:
        raise UserError(f"{what}: {error.strerror}", "name a disk image") from error
    program = find(PROGRAM, (), package=PACKAGE, what_for=what)
    blockdev = {
        "driver": DRIVERS[config.format],
        "node-name": "disk",
        "read-only": config.read_only,
        "discard": "unmap",
        "file": {"driver": driver, "filename": path, "discard": "unmap"},
    }
    files = image_files(path, config)
    try:
        return Service(partial(command, program, blockdev, config), events, what=what, files=files)
    except OSError as error:
        raise HostError(f"{what}: {error.strerror}", "did another program move a file?") from error


def command(program: str, blockdev: dict[str, Any], config: DiskConfig, fd: int) -> list[str]:
    """Return the command line of a daemon that listens on *fd*."""
    export = {
        "type": "vhost-user-blk",
        "id": "disk",
        "node-name": "disk",
        "writable": not config.read_only,
        "num-queues": config.queues,
        # The daemon caches the image's tables. If it dies they are lost, and no guest is told.
        "writethrough": config.cache != "writeback",
        "addr": {"type": "fd", "str": str(fd)},
    }
    return [program, "--blockdev", json.dumps(blockdev), "--export", json.dumps(export)]
