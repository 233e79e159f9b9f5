"""Write seccomp filters of policies, for arm64 and x86-64.

    sandbox.toml         the threads of a machine  --> _filters.h
    storage_daemon.toml  qemu-storage-daemon       --> _daemon_filters.h

libseccomp knows every architecture's system calls and makes the programs; its Python bindings
(pyseccomp) are needed here, at build time, only. It is told of a number that only C knows, an
ioctl's for example, as a placeholder, which is written as the C expression that the compiler then
evaluates: filters compare such numbers for equality only.

Headers that fit the policies are left as they are: a source distribution and a wheel carry theirs,
so that what is built from them needs no libseccomp.
"""

from __future__ import annotations

import errno
import hashlib
import struct
import tempfile
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
POLICY = HERE / "sandbox.toml"
HEADER = HERE / "_filters.h"
DAEMON_POLICY = HERE / "storage_daemon.toml"
DAEMON_HEADER = HERE / "_daemon_filters.h"

KINDS: Final = {
    "queue": (),
    "vcpu": ("queue",),
    "control": ("queue",),
    "loop": ("queue", "vcpu", "control"),
}
"""Kinds of threads, and those of which each may do all that they may."""
DAEMON: Final = "storage"
"""What the storage daemon's filter is called."""

PLACEHOLDER: Final = 0x5EC00000
"""The first number that stands for a C expression: no system call, and no constant of BPF's."""

MACHINES: Final = {"__aarch64__": "AARCH64", "__x86_64__": "X86_64"}
"""Compilers' names of architectures, and libseccomp's."""

LAST_CALL: Final = 600
"""Above all numbers of system calls."""

JEQ: Final = 0x15
"""BPF_JMP | BPF_JEQ | BPF_K: a filter compares for equality with a placeholder."""

UNKNOWN: Final = -1
"""__NR_SCMP_ERROR; a call that only other architectures have is another negative number."""

HOT: Final = "KVM_RUN"
"""The ioctl that is issued at each exit of a guest."""


class Placeholders:
    """Numbers that stand for C expressions."""

    def __init__(self) -> None:
        self._expressions: list[str] = []

    def number(self, expression: str) -> int:
        """Return what stands for *expression*: itself if it is a number."""
        if expression.isdecimal():
            return int(expression)
        if expression not in self._expressions:
            self._expressions.append(expression)
        return PLACEHOLDER + self._expressions.index(expression)

    def expression(self, number: int) -> str:
        """Return the C expression that *number* stands for, or *number* as C has it."""
        index = number - PLACEHOLDER
        return self._expressions[index] if 0 <= index < len(self._expressions) else f"{number:#x}"


def names(policy: dict[str, Any], table: str, kind: str) -> list[str]:
    """Return what *table* ("calls", "ioctls") of *policy* allows to threads of *kind*."""
    kinds = (*KINDS.get(kind, ()), kind)
    return [*dict.fromkeys(name for each in kinds for name in policy[table].get(each, {}))]


def _libseccomp() -> Any:
    """Return libseccomp's bindings. Where a header is carried, a build has no need of them."""
    import pyseccomp  # type: ignore[import-untyped]

    return pyseccomp


class Rule(NamedTuple):
    """Allow a *call*, if *argument* & *mask* is *value*, a C expression; None: whatever it is."""

    call: str
    argument: int | None = None
    mask: int = 0xFFFFFFFF
    value: str = "0"


def rules(policy: dict[str, Any], kind: str) -> Iterator[Rule]:
    """Yield what threads of *kind* may do. Of one call's rules a filter tries the last first."""
    limits = {limit["call"]: limit for limit in policy["limits"]}
    for name in names(policy, "calls", kind):
        if name == "ioctl":
            for request in sorted(names(policy, "ioctls", kind), key=lambda each: each == HOT):
                yield Rule(name, 1, value=request)
        elif limit := limits.get(name):
            for value in limit["values"]:
                yield Rule(name, limit["argument"], limit["mask"], value)
        else:
            yield Rule(name)


def program(policy: dict[str, Any], kind: str, machine: str) -> Iterator[str]:
    """Yield the filter for threads of *kind* on *machine* as initialisers of struct sock_filter."""
    seccomp, placeholders = _libseccomp(), Placeholders()
    arch = getattr(seccomp.Arch, machine)
    made = seccomp.SyscallFilter(
        seccomp.ERRNO(errno.ENOSYS) if kind == DAEMON else seccomp.TRAP,
    )
    if arch != seccomp.system_arch():
        made.add_arch(arch)
        made.remove_arch(seccomp.Arch.NATIVE)
    made.set_attr(seccomp.Attr.CTL_OPTIMIZE, 2)  # a binary tree of system calls
    for name, error in policy["errors"].items():
        made.add_rule(seccomp.ERRNO(getattr(errno, error)), name)
    for call, argument, mask, value in rules(policy, kind):
        if seccomp.resolve_syscall(arch, call) == UNKNOWN:
            raise SystemExit(f"{POLICY.name}: libseccomp knows no system call {call}")
        compared = []
        if argument is not None:
            number = placeholders.number(value)
            compared.append(seccomp.Arg(argument, seccomp.MASKED_EQ, mask, number))
        made.add_rule(seccomp.ALLOW, call, *compared)  # nothing, where there is no such call
    with tempfile.TemporaryFile() as file:
        made.export_bpf(file)
        file.seek(0)
        code = file.read()
    for operation, yes, no, value in struct.iter_unpack("=HBBI", code):
        shown = placeholders.expression(value) if operation == JEQ else f"{value:#x}"
        yield f"{{ {operation:#x}, {yes}, {no}, {shown} }},"


def call_names(machine: str) -> Iterator[str]:
    """Yield names of system calls as designated initialisers."""
    seccomp = _libseccomp()
    arch = getattr(seccomp.Arch, machine)
    for number in range(LAST_CALL):
        with suppress(ValueError):  # there is none of that number
            yield f'[{number}] = "{seccomp.resolve_syscall(arch, number).decode()}",'


def header() -> str:
    """Return the header for the policy as it is."""
    policy = tomllib.loads(POLICY.read_text())
    lines = ["/* SPDX-License-Identifier: Apache-2.0 */"]
    lines += [f"/* {digest()}: written by filters.py from sandbox.toml. */"]
    for condition, machine in MACHINES.items():
        lines.append(f"#if defined({condition})")
        for kind in KINDS:
            lines += [f"static const struct sock_filter {kind}_filter[] = {{"]
            lines += [*program(policy, kind, machine), "};"]
        lines += ["static const char *const call_names[] = {", *call_names(machine), "};", "#endif"]
    ioctls = names(policy, "ioctls", "loop")
    lines += ["static const struct { uint32_t number; const char *name; } ioctl_names[] = {"]
    lines += [*(f'{{ {name}, "{name}" }},' for name in ioctls), "};"]
    return "\n".join(lines) + "\n"


def daemon_header() -> str:
    """Return the header for the daemon's policy as it is."""
    policy = tomllib.loads(DAEMON_POLICY.read_text())
    lines = ["/* SPDX-License-Identifier: Apache-2.0 */"]
    lines += [f"/* {digest(DAEMON_POLICY)}: written by filters.py from storage_daemon.toml. */"]
    for condition, machine in MACHINES.items():
        lines += [f"#if defined({condition})", "static struct sock_filter storage_filter[] = {"]
        lines += [*program(policy, DAEMON, machine), "};", "#endif"]
    return "\n".join(lines) + "\n"


def digest(policy: Path = POLICY) -> str:
    """Return a hash of what the header of *policy* is made of."""
    made_of = policy.read_bytes() + Path(__file__).read_bytes()
    return hashlib.sha256(made_of).hexdigest()


def emit() -> None:
    """Write the headers that do not fit their policies already."""
    for policy, path, make in (
        (POLICY, HEADER, header),
        (DAEMON_POLICY, DAEMON_HEADER, daemon_header),
    ):
        if not path.exists() or digest(policy) not in path.read_text():
            path.write_text(make())


if __name__ == "__main__":
    emit()
