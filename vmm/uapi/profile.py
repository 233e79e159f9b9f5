"""A UAPI profile: what a kernel's KVM has that no released kernel has, named in a TOML file.

    structs = '''
    struct kvm_widget { __u64 addr; __u32 flags; __u32 pad; };   /* as the kernel's header has it */
    '''
    enable = ["KVM_CAP_WIDGET"]         # KVM_ENABLE_CAP of it on each VM
    ram_flags = ["KVM_MEM_WIDGET"]      # on each memory slot of RAM

    [capabilities]
    KVM_CAP_WIDGET = 300
    [memory_flags]
    KVM_MEM_WIDGET = 0x10
    [ioctls.KVM_MAKE_WIDGET]
    of = "vm"                           # system, vm or vcpu
    number = 0xe0
    direction = "write"                 # none, read, write or both: _IO, _IOR, _IOW, _IOWR
    struct = "kvm_widget"

Numbers of ioctls are computed as <asm-generic/ioctl.h> does on arm64 and x86-64, with KVM's type.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import cffi

from vmm.config import toml_file
from vmm.errors import UserError
from vmm.fd import CallNumber

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmm.kvm.fd import KvmFd

KVMIO: Final = 0xAE
DIRECTIONS: Final = {"none": 0, "write": 1, "read": 2, "both": 3}
OWNERS: Final = ("system", "vm", "vcpu")
INTEGERS: Final = "".join(
    f"typedef {'u' * (sign == 'u')}int{bits}_t __{sign}{bits};\n"
    for sign in "us"
    for bits in (8, 16, 32, 64)
)
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SAMPLE: Final = "vmm/uapi/README.md has a sample"
KEYS: Final = ("structs", "enable", "ram_flags", "capabilities", "memory_flags", "ioctls")
MOST_SIZE: Final = (1 << 14) - 1
"""Bytes that an ioctl's number has room to say (_IOC_SIZEBITS)."""


class RawAnswer(NamedTuple):
    """What a raw ioctl returned, and its struct as the kernel has left it; None: it has none."""

    result: int
    struct: Any


@dataclass(frozen=True)
class RawIoctl:
    """An ioctl of a profile.

    of      the descriptor that it is for: system, vm or vcpu
    struct  the name of its argument's struct; None: the argument is an integer
    """

    request: CallNumber
    of: str
    direction: Literal["none", "write", "read", "both"]
    struct: str | None


@dataclass(frozen=True)
class UapiProfile:
    """What a TOML file says of a kernel."""

    capabilities: Mapping[str, int] = field(default_factory=dict)
    memory_flags: Mapping[str, int] = field(default_factory=dict)
    ioctls: Mapping[str, RawIoctl] = field(default_factory=dict)
    structs: str = ""
    enable: tuple[str, ...] = ()
    ram_flags: tuple[str, ...] = ()
    types: Any = None

    @classmethod
    def load(cls, path: Path) -> UapiProfile:
        """Read the profile at *path*. Raises `UserError`, which names the key at fault."""
        return cls.of(toml_file.read(path, SAMPLE), str(path))

    @classmethod
    def of(cls, table: Mapping[str, Any], where: str) -> UapiProfile:
        """Return the profile that *table* describes; errors begin with *where*."""
        read = _Reader(where)
        for key in table:
            if key not in KEYS:
                raise read.wrong(key, "no such key", f"the keys are {', '.join(KEYS)}")
        structs = read.text(table.get("structs", ""), "structs")
        types = read.types(structs)
        capabilities = read.numbers(table, "capabilities", 32)
        flags = read.numbers(table, "memory_flags", 32)
        return cls(
            capabilities,
            flags,
            {
                name: read.ioctl(types, name, entry)
                for name, entry in read.table(table, "ioctls").items()
            },
            structs,
            read.names(table, "enable", capabilities, "capabilities"),
            read.names(table, "ram_flags", flags, "memory_flags"),
            types,
        )

    @property
    def ram_bits(self) -> int:
        """The flags that RAM's memory slots get."""
        return sum({self.memory_flags[name] for name in self.ram_flags})

    @property
    def enabled(self) -> tuple[int, ...]:
        """The numbers of the capabilities to enable on each VM."""
        return tuple(self.capabilities[name] for name in self.enable)

    def ioctl_raw(self, fd: KvmFd, name: str, arg: int = 0, /, **fields: Any) -> RawAnswer:
        """Issue ioctl *name* of the profile on *fd*, with a struct of *fields* or with *arg*.

        Members that are not named are 0. Raises `KvmError`, and `UserError` for a name that the
        profile does not have or a member that the struct does not have or hold.
        """
        if name not in self.ioctls:
            raise UserError(
                f"{name}: the profile has no such ioctl", f"it has {', '.join(self.ioctls)}"
            )
        call = self.ioctls[name]
        if call.struct is None:
            if fields:
                raise UserError(f"{name}: its argument is an integer, and no struct")
            return RawAnswer(fd.ioctl(call.request, arg, arg=arg), None)
        try:
            struct = self.types.new(f"struct {call.struct} *", fields)
        except (KeyError, TypeError, OverflowError) as error:
            raise UserError(f"{name}: struct {call.struct}: {error}", "see the profile") from error
        return RawAnswer(fd.ioctl(call.request, struct, **fields), struct)


class _Reader:
    """Check a table's values; errors name the place in file *where*."""

    def __init__(self, where: str) -> None:
        self._where = where

    def wrong(self, key: str, what: str, hint: str = SAMPLE) -> UserError:
        return UserError(f"{self._where}: {key}: {what}", hint)

    def text(self, value: object, key: str) -> str:
        if not isinstance(value, str):
            raise self.wrong(key, f"{value!r} is no text")
        return value

    def table(self, table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = table.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, f"{value!r} is no table")
        for name in value:
            if not NAME.fullmatch(name):
                raise self.wrong(f"{key}.{name}", "not a name of C's")
        return value

    def numbers(self, table: Mapping[str, Any], key: str, bits: int) -> dict[str, int]:
        values = self.table(table, key)
        for name, value in values.items():
            self.number(value, f"{key}.{name}", bits)
        return dict(values)

    def number(self, value: object, key: str, bits: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << bits:
            raise self.wrong(key, f"{value!r} is no number of {bits} bits")
        return value

    def names(
        self, table: Mapping[str, Any], key: str, known: Mapping[str, int], of: str
    ) -> tuple[str, ...]:
        values = table.get(key, [])
        if not isinstance(values, list):
            raise self.wrong(key, f"{values!r} is no array")
        for value in values:
            if value not in known:
                raise self.wrong(key, f"{value!r} is not in [{of}]")
        return tuple(values)

    def types(self, structs: str) -> Any:
        """Return the types that *structs*, which is C, declares."""
        types = cffi.FFI()
        try:
            types.cdef(INTEGERS + structs)
        except Exception as error:  # cffi and pycparser have many
            text = " ".join(str(error).split())
            raise self.wrong("structs", f"not C as cffi reads it: {text}") from error
        return types

    def ioctl(self, types: Any, name: str, entry: object) -> RawIoctl:
        at = f"ioctls.{name}"
        if not isinstance(entry, dict):
            raise self.wrong(at, f"{entry!r} is no table")
        for key in entry:
            if key not in ("of", "number", "direction", "struct"):
                raise self.wrong(f"{at}.{key}", "no such key")
        of, direction = entry.get("of"), entry.get("direction", "none")
        if of not in OWNERS:
            raise self.wrong(f"{at}.of", f"{of!r} is none of {', '.join(OWNERS)}")
        if direction not in DIRECTIONS:
            raise self.wrong(f"{at}.direction", f"{direction!r} is none of {', '.join(DIRECTIONS)}")
        struct = entry.get("struct")
        if (struct is None) is not (direction == "none"):
            raise self.wrong(at, "a direction and a struct belong together")
        size = 0
        if struct is not None:
            try:
                size = types.sizeof(f"struct {self.text(struct, f'{at}.struct')}")
            except (cffi.CDefError, ValueError) as error:
                raise self.wrong(f"{at}.struct", f"{struct!r} is not in structs") from error
            if size > MOST_SIZE:
                raise self.wrong(f"{at}.struct", f"{size} bytes are more than a number can say")
        number = self.number(entry.get("number"), f"{at}.number", 8)
        request = CallNumber(name, DIRECTIONS[direction] << 30 | size << 16 | KVMIO << 8 | number)
        return RawIoctl(request, of, direction, struct)
