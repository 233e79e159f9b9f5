"""Mounts of a lab host's QEMU: a program that runs in QEMU's mount namespace, and nowhere else.

    mounts.py seal KEPT... -- OPEN... -- COMMAND...   make all read-only but OPEN; become COMMAND
    mounts.py open OPEN...                            make OPEN writable as well

See `vmm.lab.host.export`, which starts it. It imports nothing of pyvmm, as it is run by its file.
"""

from __future__ import annotations

import ctypes
import os
import sys

_MS_BIND, _MS_REC = 0x1000, 0x4000
_MOUNT_SETATTR = 442
"""The system call's number, which is one on all architectures (5.12)."""
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def _bind(path: str) -> None:
    """Make *path* a mount of its own, with what is mounted below it."""
    name = os.fsencode(path)
    _check(_libc.mount(name, name, None, ctypes.c_ulong(_MS_BIND | _MS_REC), None), path)


def _set(path: str, *, read_only: bool) -> None:
    """Make the mount *path*, or with *read_only* all below it as well, read-only or not."""
    # struct mount_attr of linux/mount.h: attr_set, attr_clr, propagation, userns_fd
    attributes = (ctypes.c_uint64 * 4)(0, 0, 0, 0)
    attributes[0 if read_only else 1] = _MOUNT_ATTR_RDONLY
    call = (
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_long(_AT_FDCWD),
        os.fsencode(path),
        ctypes.c_ulong(_AT_RECURSIVE if read_only else 0),
        attributes,
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check(_libc.syscall(*call), path)


def _open(paths: list[str]) -> None:
    for path in paths:
        _bind(path)
        _set(path, read_only=False)


def main(words: list[str]) -> None:
    """Do what *words* say. Raises `OSError`."""
    verb, *rest = words
    if verb == "open":
        _open(rest)
        return
    at = rest.index("--")
    kept, rest = rest[:at], rest[at + 1 :]
    at = rest.index("--")
    os.chdir("/")
    _set("/", read_only=True)
    for path in kept:
        _bind(path)
    _open(rest[:at])
    os.execvp(rest[at + 1], rest[at + 1 :])  # noqa: S606  (that is what it is for)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"mounts of the lab host: {error.filename}: {error.strerror}")
