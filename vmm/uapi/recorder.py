"""Record the ioctls that are made on KVM's descriptors.

    with Recorder() as recorder:
        ...                                  # a machine, or calls of vmm.kvm
    program = c_program.text(recorder.calls)

KVM_RUN is not among them: it is not made through `vmm.fd.Fd.ioctl` (see `vmm.kvm.vcpu`).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.coherence import vma
from vmm.kvm.fd import KvmFd
from vmm.kvm.ioctls import Ioctl

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.coherence.vma import Vma
    from vmm.fd import Request

MOST: Final = 4096
"""Calls that are kept: the first ones. The others are counted."""

MADE: Final = {
    Ioctl.KVM_CREATE_VM: "vm",
    Ioctl.KVM_CREATE_VCPU: "vcpu",
    Ioctl.KVM_CREATE_DEVICE: "device",
    Ioctl.KVM_CREATE_GUEST_MEMFD: "guest_memfd",
    Ioctl.KVM_GET_STATS_FD: "stats",
}
"""Ioctls that make a descriptor, and what we call it."""

SLOTS: Final = (Ioctl.KVM_SET_USER_MEMORY_REGION, Ioctl.KVM_SET_USER_MEMORY_REGION2)
ONE_REG: Final = (Ioctl.KVM_GET_ONE_REG, Ioctl.KVM_SET_ONE_REG)
ATTRIBUTES: Final = (Ioctl.KVM_SET_DEVICE_ATTR, Ioctl.KVM_GET_DEVICE_ATTR)


@dataclass(frozen=True)
class Call:
    """One ioctl.

    on         the descriptor: kvm, vm0, vcpu0, device0...; empty: one from before the recording
    name       the ioctl's, with its *number*
    type       the C type of what *argument* has; None: the argument is the integer
    result     what ioctl(2) returned, or a negative errno
    makes      the descriptor that it made; empty: none
    pointed    what a member of the argument points to, before the call
    mapping    where a memory slot's memory is, if it is a mapping
    """

    on: str
    name: str
    number: int
    type: Any
    argument: int | bytes
    result: int
    makes: str = ""
    pointed: bytes | None = None
    mapping: Vma | None = None


@dataclass
class Recorder(Closeable):
    """Record calls from construction to `close`. One at a time in a process; thread-safe.

    calls     the first `MOST`
    left_out  how many came after them
    """

    calls: list[Call] = field(default_factory=list)
    left_out: int = 0

    def __post_init__(self) -> None:
        if KvmFd.recorder is not None:
            raise ValueError("a recording is under way")
        self._lock = threading.Lock()
        self._names: dict[int, str] = {}
        self._counts = dict.fromkeys(MADE.values(), 0)
        self._buffers: dict[int, int] = {}
        vma.keep()
        KvmFd.recorder = self

    def close(self) -> None:
        """End the recording. Idempotent."""
        if KvmFd.recorder is self:
            KvmFd.recorder = None

    def buffer(self, address: int, size: int) -> None:
        """Say that the next device attribute at *address* has *size* bytes."""
        self._buffers[address] = size

    def call(self, fd: KvmFd, request: Request, arg: Any, issue: Callable[[], int]) -> int:
        """Make the call *issue*, and record it; return its result."""
        if len(self.calls) >= MOST:
            self.left_out += 1
            return issue()
        kind, argument = (None, int(arg)) if isinstance(arg, int) else self._taken(arg)
        address = self._address(request, arg)
        mapping = vma.find(address) if request in SLOTS else None
        pointed = self._pointed(request, arg, address)
        result = issue()
        with self._lock:
            makes = self._made(request, arg, result)
            on = "kvm" if type(fd).__name__ == "System" else self._names.get(fd.fileno(), "")
            self.calls.append(
                Call(
                    on,
                    request.name,
                    int(request),
                    kind,
                    argument,
                    result,
                    makes,
                    pointed,
                    mapping,
                )
            )
        return result

    @staticmethod
    def _taken(arg: Any) -> tuple[Any, bytes]:
        """Return the type of what *arg* points to, and its bytes."""
        kind = ffi.typeof(arg)
        if kind.kind == "array":
            return kind, bytes(ffi.buffer(arg))
        # A struct with a flexible array is as large as it was made, not as its type.
        whole = arg[0] if kind.item.kind in ("struct", "union") else kind.item
        return kind.item, bytes(ffi.buffer(arg, ffi.sizeof(whole)))

    @staticmethod
    def _address(request: Request, arg: Any) -> int:
        """Return the address in the argument; 0: it has none that is followed."""
        if request in SLOTS:
            return int(arg.userspace_addr)
        return int(arg.addr) if request in (*ONE_REG, *ATTRIBUTES) else 0

    def _pointed(self, request: Request, arg: Any, address: int) -> bytes | None:
        if request in ONE_REG:
            size = 1 << ((arg.id & lib.KVM_REG_SIZE_MASK) >> lib.KVM_REG_SIZE_SHIFT)
        else:
            size = self._buffers.pop(address, 0)
        return bytes(ffi.buffer(ffi.cast("char *", address), size)) if size else None

    def _made(self, request: Request, arg: Any, result: int) -> str:
        """Return a name for the descriptor that a call has made; empty: it has made none."""
        kind = MADE.get(request) if isinstance(request, Ioctl) else None
        if kind is None or result < 0:
            return ""
        name = f"{kind}{self._counts[kind]}"
        self._counts[kind] += 1
        self._names[int(arg.fd) if kind == "device" else result] = name
        return name
