"""--disk, as the user writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.config.disk import CACHES, DiskConfig, parse_disk
from vmm.errors import UserError
from vmm.virtio.block import raw_image


@pytest.mark.parametrize(
    ("text", "disk"),
    [
        ("disk.img", DiskConfig(Path("disk.img"))),
        ("/dev/sdb,ro", DiskConfig(Path("/dev/sdb"), read_only=True)),
        ("a=b", DiskConfig(Path("a=b"))),
        ("d,format=vhdx", DiskConfig(Path("d"), format="vhdx")),
        ("d,cache=writeback", DiskConfig(Path("d"), cache="writeback")),
        (
            "d,queues=4,serial=S 1,ro",
            DiskConfig(Path("d"), read_only=True, serial="S 1", queues=4),
        ),
    ],
)
def test_a_disk_is_a_path_with_options(text: str, disk: DiskConfig) -> None:
    assert parse_disk(text) == disk


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",ro",
        "d,rw",
        "d,",
        "d,serial=",
        "d,serial=" + "x" * 21,
        "d,serial=ü",
        "d,queues=0",
        "d,queues=65",
        "d,queues=-1",
        "d,queues=²",
        "d,queues=" + "9" * 5000,
        "d,format=qcow",
        "d,format=qcow2,serial=S",
        "d,cache=all",
    ],
)
def test_what_cannot_be_used_is_named(text: str) -> None:
    with pytest.raises(UserError, match="--disk") as caught:
        parse_disk(text)
    assert caught.value.hint


@pytest.mark.parametrize("cache", CACHES)
def test_a_raw_disk_takes_all_of_qemus_caches(cache: str) -> None:
    assert parse_disk(f"d,cache={cache}").cache == cache
    meant = raw_image.CACHE_MODES[cache]
    assert meant.direct == (cache in ("none", "directsync"))
    assert meant.write_through == (cache in ("writethrough", "directsync"))
    assert meant.unsafe == (cache == "unsafe")
