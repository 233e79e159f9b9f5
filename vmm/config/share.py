"""``--share``: a directory of the host that the guest can mount."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from vmm.config.option import FLAG, choice, parse_keys, split
from vmm.errors import UserError

TAG_BYTES: Final = 36
"""Longest tag of a file system, in bytes (VIRTIO 1.2, 5.11.4)."""

DEFAULT_TAG: Final = "share"

CACHES: Final = ("auto", "always", "metadata", "never")

SYNTAX: Final = f"DIR[:TAG][,ro][,cache={'|'.join(CACHES)}]"


class ShareConfig(NamedTuple):
    """The directory *path*, which the guest mounts by its *tag*.

    cache  how long the guest may cache data and metadata: one of virtiofsd's `CACHES`
    """

    path: Path
    tag: str = DEFAULT_TAG
    read_only: bool = False
    cache: str = "auto"


KEYS: Final = {"ro": FLAG, "cache": choice(*CACHES)}


def parse_share(text: str) -> ShareConfig:
    """Parse `SYNTAX`. Raises `UserError`."""
    place, *parts = split(text)
    path, colon, tag = place.rpartition(":")
    if not colon:
        path, tag = place, DEFAULT_TAG
    if not path:
        raise UserError(f"--share: {text!r} names no directory", f"write {SYNTAX}")
    if not 0 < len(tag.encode()) <= TAG_BYTES:
        raise UserError(f"--share {text}: a tag has 1 to {TAG_BYTES} bytes", f"write {SYNTAX}")
    found = parse_keys(f"--share {text}", parts, KEYS, f"write {SYNTAX}")
    return ShareConfig(Path(path), tag, read_only=found.pop("ro", False), **found)


def parse_shares(texts: tuple[str, ...]) -> tuple[ShareConfig, ...]:
    """Parse all ``--share`` options of a command line. Raises `UserError`."""
    shares = tuple(parse_share(text) for text in texts)
    tags = [share.tag for share in shares]
    for share in shares:
        if tags.count(share.tag) > 1:
            raise UserError(
                f"--share {share.path}: another one has the tag {share.tag!r}, too",
                "give each its own: --share DIR:TAG",
            )
    return shares
