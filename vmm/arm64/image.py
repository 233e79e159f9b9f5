"""The kernel in a file, found by its content, with the initrd and command line that it brings.

    gzip, xz, zstd of any of these ---+
    EFI zboot: one of them in a PE ---+--> Image: its header says where it goes
    UKI: a PE with .linux,            |    flat: A64 code for RAM's base + 0x80000
         .initrd, .cmdline -----------+
    ELF vmlinux: its segments, which begin with the Image header

The Image's header is described in Linux's Documentation/arch/arm64/booting.rst.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from vmm.arm64 import a64, compression, pe, wrong_image
from vmm.arm64.filemap import EAGER, map_file
from vmm.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

__all__ = ["TEXT_OFFSET", "Kernel", "identify", "load", "map_file"]

TEXT_OFFSET = 0x80000
"""The default text_offset: bytes from a 2 MiB boundary."""

_ACCEPTED = "pyvmm boots an arm64 Image (also gzip, xz or zstd), EFI zboot, UKI, vmlinux, flat A64"
_RETRY = "copy or download it again"
_MAX_LAYERS = 5

# booting.rst, "Call the kernel image": code0, code1, text_offset, image_size, flags, res2 to
# res4, magic, res5 (where a kernel with an EFI stub has its PE header).
_HEADER = Struct("<8xQQQ24x4sI")
_MAGIC = b"ARM\x64"
_MAGIC_AT = 56
_BIG_ENDIAN = 1 << 0
_PAGE_SIZES = (None, 4 << 10, 16 << 10, 64 << 10)  # flags, bits 1 and 2

_ZBOOT = Struct("<2x2x4sII8x32s")  # "MZ", "zimg", payload's offset and size, what packed it
_ZBOOT_MAGIC = b"zimg"

_ELF = Struct("<4sBB10xHHIQQQIHHHHHH")
_ELF_SEGMENT = Struct("<IIQQQQQQ")
_PT_LOAD = 1


class Kernel(NamedTuple):
    """A kernel that `vmm.arm64.boot` can place, and its companions from the same file.

    name         the file's name, for messages
    kind         "Image", or "flat" for code without a header
    layers       the formats it was in, outermost first: ("UKI", "gzip", "Image")
    payload      the bytes to load
    text_offset  where the payload goes, in bytes from a 2 MiB boundary
    image_size   bytes of RAM taken from there on, uninitialised data included
    page_size    the guest kernel's page size in bytes, if it says
    initrd, cmdline    from a UKI
    """

    name: str
    kind: Literal["Image", "flat"]
    layers: tuple[str, ...]
    payload: memoryview
    text_offset: int
    image_size: int
    page_size: int | None = None
    initrd: memoryview | None = None
    cmdline: str | None = None

    def __str__(self) -> str:
        return " of ".join(self.layers)


def load(path: Path | str, limit: int) -> Kernel:
    """Return the kernel in the file at *path*.

    *limit* is the guest's RAM in bytes, and bounds what is unpacked. Raises UserError, which says
    what the file is, if it is not an arm64 kernel or is damaged.
    """
    return identify(map_file(path, eager=min(limit, EAGER)), str(path), limit)


def identify(data: memoryview, name: str, limit: int, layers: tuple[str, ...] = ()) -> Kernel:
    """Return the kernel in *data*, the content of file *name*. Raises UserError as `load` does."""
    if len(layers) == _MAX_LAYERS:
        raise UserError(f"{name}: {' of '.join(layers)} of ...", "unpack it first")
    if kind := compression.sniff(data):
        content = compression.decompress(kind, data, limit, name)
        return identify(content, name, limit, (*layers, kind))
    try:
        # A kernel with an EFI stub is a PE file as well: look for the Image header first.
        if data[_MAGIC_AT : _MAGIC_AT + 4] == _MAGIC:
            return _image(data, name, layers)
        if bytes(data[:4]) == b"\x7fELF":
            return _vmlinux(data, name, limit, layers)
        if found := wrong_image.recognise(data):
            raise _refusal(name, layers, found.what, found.remedy)
        if program := pe.parse(data):
            return _efi(program, data, name, limit, layers)
    except pe.Truncated:
        raise _refusal(
            name, layers, "truncated: its headers promise more than there is", _RETRY
        ) from None
    if a64.plausible(data):
        return Kernel(name, "flat", (*layers, "flat"), data, TEXT_OFFSET, len(data))
    found = wrong_image.guess(data) or wrong_image.Format("neither a known format nor A64 code")
    raise _refusal(name, layers, found.what, found.remedy)


def _refusal(name: str, layers: tuple[str, ...], what: str, remedy: str = "") -> UserError:
    inside = "".join(f"{layer} of " for layer in layers)
    return UserError(f"{name}: {inside}{what}", remedy or _ACCEPTED)


def _image(data: memoryview, name: str, layers: tuple[str, ...]) -> Kernel:
    if len(data) < _HEADER.size:
        raise pe.Truncated
    text_offset, image_size, flags, _, pe_header = _HEADER.unpack_from(data)
    if flags & _BIG_ENDIAN:
        raise _refusal(
            name,
            layers,
            "a big-endian arm64 kernel",
            "build it with CONFIG_CPU_LITTLE_ENDIAN=y",
        )
    if pe_header:
        pe.parse(data)  # finds truncation; without an EFI stub nothing tells the file's size
    if not image_size:
        # Before Linux 3.17 the header does not say, and text_offset's byte order is not defined.
        # None of those kernels had more uninitialised data than its own size.
        text_offset, image_size = TEXT_OFFSET, 2 * len(data)
    return Kernel(
        name,
        "Image",
        (*layers, "Image"),
        data,
        text_offset,
        max(image_size, len(data)),
        _PAGE_SIZES[flags >> 1 & 3],
    )


def _efi(
    program: pe.Pe, data: memoryview, name: str, limit: int, layers: tuple[str, ...]
) -> Kernel:
    if program.machine != pe.MACHINE_ARM64:
        raise _refusal(name, layers, f"an EFI program for {program.architecture}")
    if data[4:8] == _ZBOOT_MAGIC:
        return identify(_zboot_payload(data, name), name, limit, (*layers, "EFI zboot"))
    sections = _uki_sections(program)
    if ".linux" not in sections:
        raise _refusal(name, layers, "an EFI program without a kernel in it")
    kernel = identify(sections[".linux"], name, limit, (*layers, "UKI"))
    cmdline = sections.get(".cmdline")
    return kernel._replace(
        initrd=sections.get(".initrd", kernel.initrd),
        cmdline=kernel.cmdline if cmdline is None else _text(cmdline),
    )


def _zboot_payload(data: memoryview, name: str) -> memoryview:
    """Return the compressed kernel (drivers/firmware/efi/libstub/zboot-header.S)."""
    _, offset, size, packer = _ZBOOT.unpack_from(data)
    payload = data[offset : offset + size]
    if not size or len(payload) < size:
        raise pe.Truncated
    if not compression.sniff(payload):
        method = ascii(packer.partition(b"\0")[0].decode("latin-1"))[1:-1]
        raise _refusal(name, ("EFI zboot",), f"{method} data", "build it with gzip, xz or zstd")
    return payload


def _uki_sections(program: pe.Pe) -> dict[str, memoryview]:
    """Return a UKI's sections: the ones common to all profiles, overridden by the first profile.

    A ".profile" section opens each profile (UAPI group specification 5, "Multi-profile UKIs").
    """
    sections: dict[str, memoryview] = {}
    for name, content in program.sections:
        if name == ".profile" and name in sections:
            break
        sections[name] = content
    return sections


def _text(section: memoryview) -> str:
    return bytes(section).partition(b"\0")[0].decode(errors="replace").strip()


def _vmlinux(data: memoryview, name: str, limit: int, layers: tuple[str, ...]) -> Kernel:
    """Lay out an ELF file's segments as `objcopy -O binary` does, which makes it an Image."""
    if len(data) < _ELF.size:
        raise pe.Truncated
    header = _ELF.unpack_from(data)
    _, word, order, _, machine, *_ = header
    if machine != 183 or (word, order) != (2, 1):
        raise _refusal(name, layers, f"an ELF file for {wrong_image.elf_machine(machine)}")
    segments_at, segment_count = header[7], header[12]
    if segments_at + segment_count * _ELF_SEGMENT.size > len(data):
        raise pe.Truncated
    table = data[segments_at : segments_at + segment_count * _ELF_SEGMENT.size]
    loads = sorted(
        (physical, offset, size)
        for kind, _, offset, _, physical, size, _, _ in _ELF_SEGMENT.iter_unpack(table)
        if kind == _PT_LOAD and size
    )
    base = loads[0][0] if loads else 0
    extent = max((physical + size for physical, _, size in loads), default=0) - base
    if any(offset + size > len(data) for _, offset, size in loads):
        raise pe.Truncated
    # Then what is copied is no more than the extent.
    ends = [physical + size for physical, _, size in loads]
    if any(end > start for end, (start, _, _) in zip(ends, loads[1:], strict=False)):
        raise _refusal(name, layers, "an arm64 ELF file whose segments overlap", _RETRY)
    flat = bytearray(extent if extent <= min(limit, compression.MOST) else 0)
    for physical, offset, size in loads if flat else ():
        flat[physical - base : physical - base + size] = data[offset : offset + size]
    content = memoryview(flat).toreadonly()
    if content[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC:
        raise _refusal(
            name,
            layers,
            "an arm64 ELF file, but not a Linux kernel that fits the guest's RAM",
            "objcopy -O binary makes a flat binary of it",
        )
    return _image(content, name, (*layers, "ELF"))
