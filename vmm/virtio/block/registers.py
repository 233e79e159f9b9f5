"""Feature bits, configuration and request types of block devices (VIRTIO 1.2, 5.2)."""

from __future__ import annotations

from typing import Any, Final

from vmm._native import ffi, lib

SECTOR: Final = 512
"""Bytes: the unit of capacities and offsets, whatever the block size (5.2.4)."""

F_SEG_MAX: Final = 1 << lib.VIRTIO_BLK_F_SEG_MAX
F_RO: Final = 1 << lib.VIRTIO_BLK_F_RO
F_BLK_SIZE: Final = 1 << lib.VIRTIO_BLK_F_BLK_SIZE
F_FLUSH: Final = 1 << lib.VIRTIO_BLK_F_FLUSH
F_MQ: Final = 1 << lib.VIRTIO_BLK_F_MQ
F_DISCARD: Final = 1 << lib.VIRTIO_BLK_F_DISCARD
F_WRITE_ZEROES: Final = 1 << lib.VIRTIO_BLK_F_WRITE_ZEROES

FEATURES: Final = F_SEG_MAX | F_RO | F_BLK_SIZE | F_FLUSH | F_MQ | F_DISCARD | F_WRITE_ZEROES
"""Features that a daemon may offer: they need nothing but the daemon and the driver."""

CONFIG_SIZE: Final = ffi.offsetof("struct virtio_blk_config", "write_zeroes_may_unmap") + 4
"""Bytes of configuration that `FEATURES` are about; old daemons have no more."""

OPERATIONS: Final = {
    lib.VIRTIO_BLK_T_IN: "read",
    lib.VIRTIO_BLK_T_OUT: "write",
    lib.VIRTIO_BLK_T_FLUSH: "flush",
    lib.VIRTIO_BLK_T_DISCARD: "discard",
    lib.VIRTIO_BLK_T_WRITE_ZEROES: "write-zeroes",
}
"""Types of requests (5.2.6), as events call them."""


def features(*, queues: int, read_only: bool, flush: bool) -> int:
    """Return the features to offer for a disk whose requests are done here."""
    found: int = F_SEG_MAX | F_BLK_SIZE
    found |= F_FLUSH if flush else 0
    found |= F_RO if read_only else F_DISCARD | F_WRITE_ZEROES
    found |= F_MQ if queues > 1 else 0
    return found


def config(*, sectors: int, segments: int, queues: int) -> bytes:
    """Return ``struct virtio_blk_config`` (5.2.4) of a disk whose requests are done here.

    segments  buffers of data that a request may have
    """
    fields: dict[str, Any] = {
        "capacity": sectors,
        "seg_max": segments,
        "blk_size": SECTOR,
        "num_queues": queues,
        "max_discard_sectors": lib.PYVMM_BLK_DISCARD_SECTORS,
        "max_discard_seg": lib.PYVMM_BLK_DISCARD_RANGES,
        "discard_sector_alignment": 1,
        "max_write_zeroes_sectors": lib.PYVMM_BLK_ZEROES_SECTORS,
        "max_write_zeroes_seg": lib.PYVMM_BLK_ZEROES_RANGES,
        "write_zeroes_may_unmap": 1,
    }
    return bytes(ffi.buffer(ffi.new("struct virtio_blk_config *", fields)))
