"""``--firmware`` and ``--flash``: boot firmware, and the flash bank that keeps its variables."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vmm.config.option import FLAG, parse_keys, split
from vmm.errors import UserError

SYNTAX = "FILE[,ro]"


class FlashConfig(NamedTuple):
    """The file behind the second bank of flash. It is created when the guest first writes it."""

    path: Path
    read_only: bool = False


def parse_flash(text: str) -> FlashConfig:
    """Parse ``FILE[,ro]``. Raises `UserError`."""
    path, *parts = split(text)
    if not path:
        raise UserError(f"--flash: {text!r} names no file", f"write {SYNTAX}")
    found = parse_keys(f"--flash {text}", parts, {"ro": FLAG}, "the only option is ro")
    return FlashConfig(Path(path), found.get("ro", False))


def check_firmware(image: Path | None, firmware: Path | None, initrd: Path | None) -> None:
    """Raise `UserError` unless a machine with these boots either a kernel or firmware."""
    if firmware is None:
        if image is None:
            raise UserError("there is nothing to boot", "name an IMAGE, or use --firmware FILE")
        return
    for option, given in (("IMAGE", image), ("--initrd", initrd)):
        if given is not None:
            raise UserError(
                f"--firmware {firmware}: {option} {given} is for machines without: "
                "firmware loads what it boots itself",
                "leave one of the two out, or put the kernel on a --disk",
            )
