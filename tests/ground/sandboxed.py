"""Play the attacker in a confined process: try calls by number, and print what came of them.

    sandboxed.py MODE KIND

MODE is --sandbox's, KIND the kind of thread that tries: loop, vcpu, queue or control. Prints
JSON: for each trial its errno (0: the kernel did it), and the denials that were noted. Each trial
is harmless: its arguments are ones that the kernel refuses with another errno.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import sys
import threading
from typing import Final

from vmm import sandbox, thread
from vmm.machine.seal import seal

BAD = -1
ARM64 = platform.machine() == "aarch64"

NUMBERS: Final = {  # arm64 has the numbers of <asm-generic/unistd.h>
    "openat": (257, 56),
    "openat2": (437, 437),
    "open_by_handle_at": (304, 265),
    "socket": (41, 198),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "memfd_create": (319, 279),
    "mount": (165, 40),
    "unshare": (272, 97),
    "setns": (308, 268),
    "pidfd_getfd": (438, 438),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "personality": (135, 92),
    "clone": (56, 220),
    "clone3": (435, 435),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "ioctl": (16, 29),
    "prctl": (157, 167),
    "seccomp": (317, 277),
}

CLONE_NEWUSER, CLONE_THREAD_ALONE = 0x10000000, 0x10000
EXEC = mmap.PROT_READ | mmap.PROT_EXEC
TIOCSTI, KVM_CREATE_VM, VFIO_SET_IOMMU = 0x5412, 0xAE01, 0x3B66
PR_SET_DUMPABLE, PR_SET_PDEATHSIG = 4, 1
SECCOMP_GET_NOTIF_SIZES = 3

TRIALS: Final[dict[str, tuple[int, ...]]] = {
    "openat": (BAD, 0, 0),
    "openat2": (BAD, 0, 0, 0),
    "open_by_handle_at": (BAD, 0, 0),
    "socket inet": (2, BAD, 0),
    "socket unix": (1, BAD, 0),
    "socket netlink": (16, BAD, 0),
    "socket vsock": (40, BAD, 0),
    "execve": (0, 0, 0),
    "execveat": (BAD, 0, 0, 0, BAD),
    "ptrace": (BAD, 0, 0, 0),
    "process_vm_readv": (0, 0, 0, 0, 0, BAD),
    "process_vm_writev": (0, 0, 0, 0, 0, BAD),
    "bpf": (BAD, 0, 0),
    "io_uring_setup": (0, 0),
    "io_uring_register": (BAD, 0, 0, 0),
    "keyctl": (BAD, 0, 0, 0, 0),
    "kexec_load": (0, 0, 0, BAD),
    "kexec_file_load": (BAD, BAD, 0, 0, BAD),
    "init_module": (0, 0, 0),
    "perf_event_open": (0, 0, BAD, BAD, BAD),
    "userfaultfd": (BAD,),
    "memfd_create": (0, BAD),
    "mount": (0, 0, 0, 0, 0),
    "unshare": (BAD,),
    "setns": (BAD, 0),
    "pidfd_getfd": (BAD, BAD, BAD),
    "kill": (0, 99),
    "tgkill another": (1, 1, 99),  # EINVAL
    "personality": (0xFFFFFFFF,),
    "clone newuser": (CLONE_NEWUSER | CLONE_THREAD_ALONE, 0, 0, 0, 0),  # EINVAL
    "clone fork": (CLONE_THREAD_ALONE, 0, 0, 0, 0),  # EINVAL
    "mmap exec": (0, 0, EXEC, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, BAD, 0),  # of no bytes
    "mprotect exec": (1, 4096, EXEC),  # at no page
    "ioctl TIOCSTI": (BAD, TIOCSTI, 0),
    "ioctl unknown": (BAD, 0xDEADBEEF, 0),
    "ioctl VFIO_SET_IOMMU": (BAD, VFIO_SET_IOMMU, 0),
    "prctl dumpable": (PR_SET_DUMPABLE, 99, 0, 0, 0),
    "prctl pdeathsig": (PR_SET_PDEATHSIG, 99, 0, 0, 0),
    "seccomp sizes": (SECCOMP_GET_NOTIF_SIZES, BAD, 0),
}
"""What no thread may do. The name's first word is the call."""

OF_THE_LOOP: Final[dict[str, tuple[int, ...]]] = {
    "ioctl KVM_CREATE_VM": (BAD, KVM_CREATE_VM, 0),
}
"""What the loop alone may do: a reset is another VM."""

OF_VCPUS: Final[dict[str, tuple[int, ...]]] = {"ioctl KVM_RUN": (BAD, 0xAE80, 0)}
"""What the loop and vCPUs may do, and queues may not."""


def attempt(name: str, arguments: tuple[int, ...]) -> int:
    """Make a call; return its errno, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = NUMBERS[name.split(maxsplit=1)[0]][ARM64]
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    return ctypes.get_errno() if result == -1 else 0


def attempts() -> dict[str, int]:
    """Make every call."""
    ours = {"clone3": (0, 0), "tgkill ourselves": (os.getpid(), threading.get_native_id(), 0)}
    trials = {**TRIALS, **OF_THE_LOOP, **OF_VCPUS, **ours}
    return {name: attempt(name, arguments) for name, arguments in trials.items()}


def main(mode: str, kind: str) -> None:
    """Print what came of all trials in a thread of *kind*."""
    found: dict[str, int] = {}
    ctypes.CDLL(None)  # no later open
    if mode != "off":
        seal()
        sandbox.confine(mode)
    kinds = {name: number for number, name in sandbox.THREADS.items()}
    tries = thread.start(kind, lambda: found.update(attempts()), kind=kinds[kind])
    tries.join()
    denied = [(each.call, each.thread) for each in sandbox.denials()]
    json.dump({"errors": found, "denied": denied}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
