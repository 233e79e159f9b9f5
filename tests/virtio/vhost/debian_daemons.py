"""Debian 13's vhost-user daemons, unpacked and on PATH, whatever this machine runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from vmm.broker import walls
from vmm.lab.debian import prefix

PACKAGES = {
    "qemu-img": ("qemu-utils", "usr/bin/qemu-img"),
    "qemu-storage-daemon": ("qemu-utils", "usr/bin/qemu-storage-daemon"),
    "virtiofsd": ("virtiofsd", "usr/libexec/virtiofsd"),
}


def install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpack the daemons to *directory*, and put that on PATH.

    They are scripts, which need a shell, and have libraries of their own behind walls.
    """
    read = ["/bin", "/usr/bin", *walls.LIBRARIES]
    monkeypatch.setattr(walls, "libraries", lambda _program: read)
    for name, (package, path) in PACKAGES.items():
        unpacked = prefix.prefix(package, [package])
        read.append(str(unpacked.root))
        command = shlex.join(unpacked.command(path))
        (directory / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")
