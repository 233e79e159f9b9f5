"""Undo gzip, xz and zstd, into at most as many bytes as there is guest RAM."""

from __future__ import annotations

import subprocess
import tempfile
from typing import TYPE_CHECKING, Any

from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

_MAGIC = {"gzip": b"\x1f\x8b\x08", "xz": b"\xfd7zXZ\0", "zstd": b"\x28\xb5\x2f\xfd"}

_XZ_MEMORY = 1 << 30
"""Bytes a decoder may take for its dictionary; xz -9 takes 65 MiB, kernels use 32 to 128 MiB."""


def sniff(data: memoryview | bytes) -> str | None:
    """Return what *data* is compressed with, if with anything that `decompress` undoes."""
    for kind, magic in _MAGIC.items():
        if data[: len(magic)] == magic:
            return kind
    return None


def decompress(kind: str, data: memoryview, limit: int, name: str) -> bytes:
    """Return what is in *data*, which came from file *name*.

    Raises UserError for data that is damaged, ends early, needs a missing decoder, or expands
    to more than *limit* bytes; no more than that is ever held.
    """
    decoder = _decoder(kind)
    if decoder is None:
        return _zstd_command(data, limit, name)
    new, failure = decoder
    parts: list[bytes] = []
    room = limit
    rest: memoryview | bytes = data
    while sniff(rest) == kind:  # streams may follow each other; anything else after one is padding
        stream = new()
        try:
            parts.append(stream.decompress(rest, room + 1))
        except failure as error:
            raise UserError(
                f"{name}: damaged {kind} data: {error}", "copy or download it again"
            ) from None
        room -= len(parts[-1])
        if room < 0:
            raise _too_big(kind, limit, name)
        if not stream.eof:
            raise _truncated(kind, name)
        rest = stream.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _decoder(kind: str) -> tuple[Callable[[], Any], type[Exception]] | None:
    if kind == "gzip":
        import zlib  # noqa: PLC0415  (each of these costs time in an emulated host: as needed)

        return lambda: zlib.decompressobj(wbits=31), zlib.error
    if kind == "xz":
        import lzma  # noqa: PLC0415

        return lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY), lzma.LZMAError
    for module in ("compression.zstd", "backports.zstd"):
        try:
            zstd: Any = __import__(module, fromlist=["ZstdDecompressor"])
        except ImportError:
            continue
        return zstd.ZstdDecompressor, zstd.ZstdError
    return None


def _zstd_command(data: memoryview, limit: int, name: str) -> bytes:
    """Decompress by the ``zstd`` command, for Pythons before 3.14 without backports.zstd."""
    with tempfile.TemporaryFile() as source:
        source.write(data)
        source.seek(0)
        try:
            command = subprocess.Popen(
                ["zstd", "-dcq"], stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except FileNotFoundError:
            raise UserError(
                f"{name}: this Python has no zstd",
                "install Debian's zstd package, or pip install 'pyvmm-arm64[zstd]'",
            ) from None
        with command:
            assert command.stdout
            assert command.stderr
            content = command.stdout.read(limit + 1)
            if len(content) > limit:
                command.kill()
                raise _too_big("zstd", limit, name)
            complaint = command.stderr.read().decode(errors="replace").strip()
    # It can't mean the first frame, whose magic number brought us here: padding follows.
    if command.returncode == 0 or complaint.endswith("unsupported format"):
        return content
    if "premature" in complaint or "incomplete" in complaint:
        raise _truncated("zstd", name)
    raise UserError(f"{name}: damaged zstd data: {complaint}", "copy or download it again")


def _truncated(kind: str, name: str) -> UserError:
    return UserError(f"{name}: truncated: the {kind} data ends early", "copy or download it again")


def _too_big(kind: str, limit: int, name: str) -> UserError:
    return UserError(
        f"{name}: the {kind} data unpacks to more than the guest's {limit >> 20} MiB of RAM",
        "use more --memory if it really is a kernel",
    )
