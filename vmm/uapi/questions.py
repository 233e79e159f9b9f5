"""Ask a kernel about what a profile names: `pyvmm probe --uapi-profile`."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm.coherence.capability import FlagAnswer, probe_flag
from vmm.fd import CallNumber
from vmm.kvm.fd import KvmError
from vmm.kvm.system import System
from vmm.uapi.profile import KVMIO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm.kvm.fd import KvmFd
    from vmm.uapi.profile import UapiProfile


NOBODYS: Final = CallNumber("nobody's", KVMIO << 8 | 0xFF)
"""An ioctl that KVM does not have, on any descriptor."""


class IoctlAnswer(NamedTuple):
    """An errno's name, or "0"; and whether KVM knows the ioctl. None: it cannot be told.

    It can be if the answer is not that to `NOBODYS`. That is ENOTTY on /dev/kvm and everywhere on
    x86, but EINVAL on a VM and a vCPU of arm64 (arch/arm64/kvm/arm.c, kvm_arch_vm_ioctl).
    """

    errno: str
    known: bool | None


@dataclass(frozen=True)
class Answers:
    """A kernel's answers.

    capabilities  KVM_CHECK_EXTENSION on /dev/kvm and on a VM; None: it failed
    memory_flags  of each flag, the answers of the two ioctls
    ioctls        what each says to an argument of zeroes
    """

    capabilities: Mapping[str, tuple[int | None, int | None]]
    memory_flags: Mapping[str, Mapping[str, FlagAnswer]]
    ioctls: Mapping[str, IoctlAnswer]

    @classmethod
    def of(cls, profile: UapiProfile) -> Answers:
        """Ask KVM, on a scratch VM with one vCPU. Raises `HostError` and `KvmError`."""
        with ExitStack() as owned:
            system = owned.enter_context(System.open())
            vm = owned.enter_context(system.create_vm())
            fds: dict[str, KvmFd] = {"system": system, "vm": vm}
            if any(call.of == "vcpu" for call in profile.ioctls.values()):
                fds["vcpu"] = owned.enter_context(vm.create_vcpu(0))
            return cls(
                {
                    name: (_ask(system.check_extension, number), _ask(vm.check_extension, number))
                    for name, number in profile.capabilities.items()
                },
                {name: probe_flag(vm, flag) for name, flag in profile.memory_flags.items()},
                {name: _try(profile, fds[call.of], name) for name, call in profile.ioctls.items()},
            )

    def as_json(self) -> dict[str, Any]:
        """Return them as JSON values."""
        flags = {
            name: {ioctl: answer.value for ioctl, answer in answers.items()}
            for name, answers in self.memory_flags.items()
        }
        ioctls = {name: said._asdict() for name, said in self.ioctls.items()}
        return {**asdict(self), "memory_flags": flags, "ioctls": ioctls}

    def lines(self) -> list[str]:
        """Return lines of text."""
        names = [*self.capabilities, *self.memory_flags, *self.ioctls]
        wide = max(map(len, names), default=0)
        return [
            *(
                f"{name:{wide}}  /dev/kvm: {_shown(system)}, a VM: {_shown(vm)}"
                for name, (system, vm) in self.capabilities.items()
            ),
            *(
                f"{name:{wide}}  "
                + ", ".join(f"{ioctl}: {answer.value}" for ioctl, answer in said.items())
                for name, said in self.memory_flags.items()
            ),
            *(
                f"{name:{wide}}  with zeroes: {'no error' if said.errno == '0' else said.errno}"
                f" ({_KNOWN[said.known]})"
                for name, said in self.ioctls.items()
            ),
        ]


_KNOWN: Final = {
    True: "KVM knows it",
    False: "KVM does not know it",
    None: "KVM says so, too, to what it does not know",
}


def _ask(check: Callable[[int], int], number: int) -> int | None:
    try:
        return check(number)
    except KvmError:
        return None


def _shown(answer: int | None) -> str:
    return "error" if answer is None else str(answer)


def _try(profile: UapiProfile, fd: KvmFd, name: str) -> IoctlAnswer:
    unknown = -fd.try_ioctl(NOBODYS)
    try:
        profile.ioctl_raw(fd, name)
    except KvmError as error:
        said = errno.errorcode.get(error.errno, str(error.errno))
        if error.errno != unknown:
            return IoctlAnswer(said, known=True)
        return IoctlAnswer(said, known=False if unknown == errno.ENOTTY else None)
    return IoctlAnswer("0", known=True)
