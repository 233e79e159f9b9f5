"""Causes of a failed system call: an errno has several; those that can be checked are.

    table      (call, errno) -> causes, the likeliest first, from the kernel's source
    rank       what a failed call may have had: checked causes first, excluded ones left out
    sentence   the first, and what else it may be, as one clause of an error message

A check looks at the call's arguments, or asks the kernel by an ioctl that changes nothing.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

OTHERS: Final = 2
"""Causes that an error message names beside the first."""


class FailedCall(NamedTuple):
    """A system call that failed: its name, or its ioctl's, and what it was about."""

    name: str
    errno: int
    arguments: Mapping[str, object] = {}
    fd: int = -1
    """The descriptor that it was made on."""
    file: str = ""
    """The class of that descriptor, such as Vcpu."""

    def __str__(self) -> str:
        """Return the call as an error shows it: integers above 9 in hexadecimal."""
        shown = (
            f"{key}={value:#x}" if isinstance(value, int) and value > 9 else f"{key}={value}"
            for key, value in self.arguments.items()
        )
        return f"{self.name}({', '.join(shown)})"

    def number(self, name: str) -> int | None:
        """Return integer argument *name*; None if it is not known."""
        value = self.arguments.get(name)
        return int(value) if isinstance(value, int) else None


Check = Callable[[FailedCall], bool | None]
"""Tells whether something is the cause of a call: True, False, or None if that is not known."""


@dataclass(frozen=True)
class Cause:
    """One possible cause of an errno.

    what      a clause
    remedy    what to do about it; may be empty
    where     the kernel's function that returns the errno, and its file
    certain   it was checked, not inferred
    check     tells whether it is the cause of a call
    """

    what: str
    remedy: str = ""
    where: str = ""
    certain: bool = False
    check: Check | None = None


Table = dict[tuple[str, int], tuple[Cause, ...]]
"""By call and errno."""

General = dict[int, tuple[Cause, ...]]
"""By errno, whatever the call."""


def is_closed(call: FailedCall) -> bool:
    """Tell whether the call's own descriptor is closed."""
    try:
        os.fstat(call.fd)
    except OSError:
        return True
    return False


def holds(argument: str, test: Callable[[int], bool]) -> Check:
    """Return a check: *test* is true of integer *argument*."""

    def check(call: FailedCall) -> bool | None:
        value = call.number(argument)
        return None if value is None else test(value)

    return check


def misses(argument: str, allowed: tuple[int, ...]) -> Check:
    """Return a check: *argument* is none of *allowed*."""
    return holds(argument, lambda value: value not in allowed)


def zero(argument: str) -> Check:
    """Return a check: *argument* is 0."""
    return holds(argument, lambda value: value == 0)


def unaligned(*arguments: str) -> Check:
    """Return a check: one of *arguments* is no multiple of the host's page."""

    def check(call: FailedCall) -> bool | None:
        values = [call.number(each) for each in arguments]
        known = [value for value in values if value is not None]
        return any(value % mmap.PAGESIZE for value in known) if known else None

    return check


NO_MEMORY: Final = Cause("the host is out of memory", "free some, or raise the cgroup's limit")
NOT_PERMITTED: Final = Cause("not permitted", "run as a user who may, or as root")

GENERAL: Final[General] = {
    errno.EBADF: (Cause("the descriptor is closed", "keep it open", check=is_closed),),
    errno.ENOTTY: (Cause("this kernel does not know the ioctl, or not on this descriptor"),),
    errno.ENOMEM: (NO_MEMORY,),
    errno.EPERM: (NOT_PERMITTED,),
    errno.EACCES: (NOT_PERMITTED,),
    errno.EMFILE: (Cause("too many open files", "raise the limit (ulimit -n)"),),
    errno.ENFILE: (Cause("the host is out of file table entries", "raise fs.file-max"),),
}


def find(call: FailedCall, table: Table, general: General = GENERAL) -> list[Cause]:
    """Return what *call* may have failed from, the likeliest first."""
    return rank(table.get((call.name, call.errno)) or general.get(call.errno, ()), call)


def rank(causes: Iterable[Cause], call: FailedCall) -> list[Cause]:
    """Return those of *causes* that *call* may have had, the likeliest first."""
    possible = []
    for cause in causes:
        found = None if cause.check is None else cause.check(call)
        if found is not False:
            possible.append(replace(cause, certain=cause.certain or bool(found)))
    return sorted(possible, key=lambda cause: not cause.certain)


def sentence(causes: Sequence[Cause]) -> str:
    """Return one clause for an error message: empty if *causes* is."""
    if not causes:
        return ""
    first, *others = causes
    less = "" if first.certain else "".join(f", or {cause.what}" for cause in others[:OTHERS])
    remedy = f": {first.remedy}" if first.remedy and not less else ""
    return f"{first.what}{less}{remedy}"
