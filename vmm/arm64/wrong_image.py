"""Name files that are not arm64 kernels, for error messages."""

from __future__ import annotations

from codecs import getincrementaldecoder
from contextlib import suppress
from typing import NamedTuple

_BUILD = "build or download the arm64 kernel"
_DISK = "a disk holds a kernel but is none: extract its /boot/vmlinuz"
_UNPACK = "unpack it first, or use gzip, xz or zstd"


class Format(NamedTuple):
    """A file format: what it is, and what to do instead."""

    what: str
    remedy: str = ""


_MAGIC: tuple[tuple[int, bytes, Format], ...] = (
    # Other kernels. bzImage first: it is a PE file and has a boot sector signature as well.
    (0x202, b"HdrS", Format("an x86 Linux kernel (bzImage)", _BUILD)),
    (0x24, b"\x18\x28\x6f\x01", Format("a 32-bit Arm Linux kernel (zImage)", _BUILD)),
    (0x24, b"\x01\x6f\x28\x18", Format("a big-endian 32-bit Arm Linux kernel (zImage)", _BUILD)),
    (0x38, b"RSC\x05", Format("a RISC-V Linux kernel (Image)", _BUILD)),
    (0, b"\x27\x05\x19\x56", Format("a U-Boot uImage", "extract its kernel with dumpimage")),
    (0, b"ANDROID!", Format("an Android boot image", "extract its kernel with unpack_bootimg")),
    (0, b"\xd0\x0d\xfe\xed", Format("a device tree or FIT image", "extract a FIT's kernel")),
    # Compressions that Python's library lacks, or that arm64 distributions do not use.
    (0, b"\x04\x22\x4d\x18", Format("lz4-compressed", _UNPACK)),
    (0, b"\x02\x21\x4c\x18", Format("lz4-compressed (legacy format)", _UNPACK)),
    (0, b"BZh", Format("bzip2-compressed", _UNPACK)),
    (0, b"\x89LZO\x00", Format("lzop-compressed", _UNPACK)),
    # Files for another option.
    (0, b"070701", Format("a cpio archive", "give an initramfs with --initrd")),
    (0, b"070702", Format("a cpio archive", "give an initramfs with --initrd")),
    # Disks, file systems and archives.
    (0, b"QFI\xfb", Format("a qcow2 disk image", _DISK)),
    (0, b"KDMV", Format("a VMDK disk image", _DISK)),
    (0, b"vhdxfile", Format("a VHDX disk image", _DISK)),
    (0, b"conectix", Format("a VHD disk image", _DISK)),
    (0x8001, b"CD001", Format("an ISO 9660 image", _DISK)),
    (0x200, b"EFI PART", Format("a disk image with a GPT", _DISK)),
    (0x1000, b"EFI PART", Format("a disk image with a GPT", _DISK)),
    (0, b"XFSB", Format("an XFS file system", _DISK)),
    (0x10040, b"_BHRfS_M", Format("a btrfs file system", _DISK)),
    (0, b"hsqs", Format("a squashfs file system", _DISK)),
    (0x400, b"\xe2\xe1\xf5\xe0", Format("an EROFS file system", _DISK)),
    (0x101, b"ustar", Format("a tar archive", _UNPACK)),
    (0, b"PK\x03\x04", Format("a zip archive", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", Format("a 7z archive", _UNPACK)),
    (0, b"!<arch>\n", Format("an ar archive or Debian package", "unpack it with dpkg-deb -x")),
    (0, b"\xed\xab\xee\xdb", Format("an RPM package", "unpack it with rpm2cpio")),
    (0, b"\xcf\xfa\xed\xfe", Format("a Mach-O file", _BUILD)),
    (0, b"\x89PNG", Format("a PNG picture")),
    (0, b"\xff\xd8\xff", Format("a JPEG picture")),
    (0, b"%PDF-", Format("a PDF document")),
)

_SHORT_MAGIC: tuple[tuple[int, bytes, Format], ...] = (
    # Two or three bytes may match by chance, so these are tried last.
    (0, b"\x5d\x00\x00", Format("lzma-compressed (older than xz)", _UNPACK)),
    (0, b"\x1f\x9d", Format("compress-compressed", _UNPACK)),
    (0, b"MZ", Format("a DOS program", _BUILD)),
    (0x438, b"\x53\xef", Format("an ext4 file system", _DISK)),
    (0x1FE, b"\x55\xaa", Format("a disk image with an MBR", _DISK)),
)

_SAMPLE = 1024
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b"))


def recognise(data: memoryview) -> Format | None:
    """Return the format of *data* if it is certain: by magic number, or text."""
    if found := _match(_MAGIC, data):
        return found
    sample = bytes(data[:_SAMPLE])
    if not sample.strip(b"\0"):
        return Format("nothing but zeros at its start", "copy or download it again")
    if len(sample.translate(None, _CONTROLS)) == len(sample):
        # Incrementally: the sample may end within a character.
        with suppress(UnicodeDecodeError):
            getincrementaldecoder("utf-8")().decode(sample)
            return Format("a text file")
    return None


def guess(data: memoryview) -> Format | None:
    """Return the format *data* may have, by a magic number that is short."""
    return _match(_SHORT_MAGIC, data)


def _match(table: tuple[tuple[int, bytes, Format], ...], data: memoryview) -> Format | None:
    for offset, magic, found in table:
        if data[offset : offset + len(magic)] == magic:
            return found
    return None


def elf_machine(number: int) -> str:
    """Return the name of ELF e_machine *number*."""
    names = {
        3: "x86",
        40: "32-bit Arm",
        62: "x86-64",
        183: "arm64",
        243: "RISC-V",
        258: "LoongArch",
    }
    return names.get(number, f"unknown machine {number}")
