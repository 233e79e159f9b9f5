"""Unpack gzip, xz and zstd, into at most as many bytes as the guest has RAM, and `MOST`."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any, Final

from vmm._native import ffi
from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

_MAGIC = {"gzip": b"\x1f\x8b\x08", "xz": b"\xfd7zXZ\0", "zstd": b"\x28\xb5\x2f\xfd"}

_XZ_MEMORY = 1 << 30
"""Bytes of dictionary a decoder may allocate; xz -9 takes 65 MiB, kernels 32 to 128 MiB."""


MOST: Final = 1 << 30
"""Bytes that a kernel may have; with debug information it has some hundred million."""

STREAMS: Final = 4096
"""Streams one after the other in a file; parallel compressors make one a mebibyte or so."""

_PIECE = 1 << 16
"""Bytes that a decoder gets at once, and so may give back."""


def sniff(data: memoryview | bytes) -> str | None:
    """Return the compression of *data*, for `decompress`; None if there is none."""
    for kind, magic in _MAGIC.items():
        if data[: len(magic)] == magic:
            return kind
    return None


def decompress(kind: str, data: memoryview, limit: int, name: str) -> memoryview:
    """Return the unpacked *data* of file *name*, in time and memory that both have a bound.

    Raises UserError if it is damaged, ends early, needs a decoder that is not installed, has more
    than `STREAMS` streams, or unpacks to more than *limit* or `MOST` bytes.
    """
    limit = min(limit, MOST)
    decoder = _decoder(kind)
    if decoder is None:
        return _libzstd(data, limit, name)
    new, failure = decoder
    content = bytearray()
    at = streams = 0
    while sniff(data[at:]) == kind:  # other data after a stream is padding
        streams += 1
        if streams > STREAMS:
            raise _too_many(kind, name)
        stream = new()
        while not stream.eof:
            piece = data[at : at + _PIECE]
            if not piece:
                raise _truncated(kind, name)
            try:
                content += stream.decompress(piece, limit - len(content) + 1)
            except failure as error:
                raise _damaged(kind, name, error) from None
            if len(content) > limit:
                raise _too_big(kind, limit, name)
            at += len(piece) - len(stream.unused_data)
    return memoryview(content).toreadonly()


def _decoder(kind: str) -> tuple[Callable[[], Any], type[Exception]] | None:
    if kind == "gzip":
        import zlib

        return lambda: zlib.decompressobj(wbits=31), zlib.error
    if kind == "xz":
        import lzma

        return lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY), lzma.LZMAError
    for module in ("compression.zstd", "backports.zstd"):
        try:
            zstd: Any = __import__(module, fromlist=["ZstdDecompressor"])
        except ImportError:
            continue
        return zstd.ZstdDecompressor, zstd.ZstdError
    return None


def _libzstd(data: memoryview, limit: int, name: str) -> memoryview:
    """Unpack zstd by libzstd.so.1, for Pythons before 3.14 without backports.zstd.

    Debian always has it: dpkg needs it.
    """
    import ctypes

    try:
        library = ctypes.CDLL("libzstd.so.1")
    except OSError:
        raise UserError(
            f"{name}: this Python has no zstd",
            "install Debian's libzstd1 package, or pip install 'pyvmm-arm64[zstd]'",
        ) from None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    frame_size, unpack = library.ZSTD_findFrameCompressedSize, library.ZSTD_decompress
    frame_size.argtypes, frame_size.restype = (pointer, size), size
    unpack.argtypes, unpack.restype = (pointer, size, pointer, size), size
    library.ZSTD_isError.argtypes = library.ZSTD_getErrorName.argtypes = (size,)
    library.ZSTD_getErrorName.restype = ctypes.c_char_p

    def check(result: int) -> int:
        if not library.ZSTD_isError(result):
            return result
        complaint = library.ZSTD_getErrorName(result).decode()
        if complaint == "Src size is incorrect":
            raise _truncated("zstd", name)
        if complaint == "Destination buffer is too small":
            raise _too_big("zstd", limit, name)
        raise _damaged("zstd", name, complaint)

    source = ffi.from_buffer("char[]", data)
    start = int(ffi.cast("uintptr_t", source))
    end = streams = 0
    while sniff(data[end:]) == "zstd":
        streams += 1
        if streams > STREAMS:
            raise _too_many("zstd", name)
        end += check(frame_size(start + end, len(data) - end))
    # Address space for all there may be: only pages that are written become resident.
    target = mmap.mmap(-1, limit)
    there = int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", target)))
    return memoryview(target)[: check(unpack(there, limit, start, end))]


def _damaged(kind: str, name: str, complaint: object) -> UserError:
    return UserError(f"{name}: damaged {kind} data: {complaint}", "copy or download it again")


def _truncated(kind: str, name: str) -> UserError:
    return UserError(f"{name}: truncated: the {kind} data ends early", "copy or download it again")


def _too_many(kind: str, name: str) -> UserError:
    return UserError(f"{name}: more than {STREAMS} {kind} streams", "unpack it first")


def _too_big(kind: str, limit: int, name: str) -> UserError:
    if limit == MOST:
        return UserError(
            f"{name}: the {kind} data unpacks to more than {MOST >> 20} MiB", "unpack it first"
        )
    return UserError(
        f"{name}: the {kind} data unpacks to more than the guest's {limit >> 20} MiB of RAM",
        "use more --memory if it really is a kernel",
    )
