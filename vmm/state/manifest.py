"""The manifest of a snapshot: JSON that people read and diff, checked when it is read.

    format, version   what it is
    made_by           program, kernel, time
    cpu               what the guest was shown of the host
    machine           the configuration, as `vmm.config.codec` writes it
    disks             the disks' files, which the snapshot does not contain, as they were
    memory            the file with guest RAM, beside the manifest
    state             processor, interrupt controller, devices
    checksum          SHA-256 of all of the above

Version 2 has ``state.gpio`` and ``state.vmgenid``, which version 1 has not. `READABLE` is the
newest that this module reads, and writes; it reads all before. tests/state/samples has one of each.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from vmm.devices.pl061 import RESET
from vmm.errors import UserError
from vmm.state.machine_state import MachineState  # noqa: TC001  (typed_json reads the annotations)
from vmm.state.visible_cpu import VisibleCpu  # noqa: TC001
from vmm.typed_json import Hex, decode, encode, load

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = "pyvmm snapshot"
READABLE: Final = 2
NAME: Final = "manifest.json"

NO_ID: Final = bytes(16)
"""The VM generation ID of a guest that knew of none."""


@dataclass(frozen=True)
class MadeBy:
    """Who made the snapshot, and when: *time* is ISO 8601 in UTC."""

    program: str
    kernel: str
    time: str


@dataclass(frozen=True)
class DiskFile:
    """A disk's file when the snapshot was taken; *modified* in nanoseconds since 1970."""

    path: str
    size: int
    modified: int


@dataclass(frozen=True)
class MemoryFile:
    """The file with guest RAM.

    file    its name, in the manifest's directory
    base    the first guest physical address
    size    bytes; zeroes are holes
    stored  bytes that are not in holes
    sha256  see `vmm.state.memory_file.Written`
    """

    file: str
    base: Hex
    size: int
    stored: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A manifest. *checksum* is set by `text`."""

    made_by: MadeBy
    cpu: VisibleCpu
    machine: Any
    disks: tuple[DiskFile, ...]
    memory: MemoryFile
    state: MachineState
    checksum: str = ""


def text(manifest: Manifest) -> str:
    """Return *manifest* as the text of its file."""
    value = {"format": FORMAT, "version": READABLE, **encode(manifest)}
    value["checksum"] = _checksum(value)
    return json.dumps(value, indent=1) + "\n"


def _checksum(value: dict[str, Any]) -> str:
    """Return the checksum of a manifest in JSON values, whatever its white space."""
    rest = {name: each for name, each in value.items() if name != "checksum"}
    plain = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()


def read(directory: Path) -> Manifest:
    """Return the manifest in *directory*. Raises `UserError`: what is wrong, and in which member.

    A member of a wrong type is found before a wrong checksum is, so that the error names it.
    """
    path = directory / NAME
    value = load(path, FORMAT, READABLE)
    given = {name: each for name, each in value.items() if name not in ("format", "version")}
    if value["version"] == 1 and isinstance(given.get("state"), dict):
        given["state"] = {**given["state"], "gpio": encode(RESET), "vmgenid": NO_ID.hex()}
    found = decode(Manifest, given, str(path))
    if found.checksum != _checksum(value):
        raise UserError(
            f"{path}: checksum: the text is not what was written", "use another snapshot"
        )
    if "/" in found.memory.file or found.memory.file in ("", ".", ".."):
        raise UserError(f"{path}: memory.file: {found.memory.file!r} is no name of a file")
    return replace(found, checksum="")
