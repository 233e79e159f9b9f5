"""Faults that are made on purpose: the first cause that the error names is the right one.

This machine's KVM answers, or an arm64 host's when the tests run there. What is a fault of one
architecture alone is in its list only. `tests/lab/inside/vfio_faults.py` has those of VFIO.
"""

from __future__ import annotations

import errno
import mmap
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from vmm._native import ffi, lib
from vmm.arm64 import registers
from vmm.errors import KernelError
from vmm.fd import EventFd
from vmm.kvm.system import System
from vmm.kvm.vm import MemFlag, MsiRoute, Vm
from vmm.memory import Mapping

PAGE = mmap.PAGESIZE
IPA = 0x4000_0000


class Scene(NamedTuple):
    """What a fault is made with."""

    system: System
    vm: Vm
    memory: int
    """The host address of 16 pages."""
    owned: ExitStack


Fault = Callable[[Scene], object]


def slot(at: Scene, *, number: int = 0, flags: int = 0, base: int = IPA, **changed: int) -> None:
    size, address = changed.get("size", PAGE), changed.get("address", at.memory)
    at.vm.set_user_memory_region(number, flags, base, size, address)


def twice(at: Scene, **second: int) -> None:
    slot(at)
    slot(at, **second)


def eventfd(at: Scene) -> int:
    return at.owned.enter_context(EventFd()).fileno()


def file(at: Scene) -> int:
    return at.owned.enter_context(Path(os.devnull).open("rb")).fileno()


def closed_vm(at: Scene) -> None:
    at.vm.close()
    slot(at)


def ioeventfd_twice(at: Scene) -> None:
    for _ in range(2):
        at.vm.ioeventfd(IPA, 4, eventfd(at))


def vcpu_twice(at: Scene) -> None:
    for _ in range(2):
        at.owned.enter_context(at.vm.create_vcpu(0))


FAULTS: dict[str, tuple[Fault, int, str]] = {
    "base not aligned": (lambda at: slot(at, base=IPA + 8), errno.EINVAL, "multiple of the host"),
    "size not aligned": (lambda at: slot(at, size=PAGE + 1), errno.EINVAL, "multiple of the host"),
    "host address not aligned": (
        lambda at: slot(at, address=at.memory + 16),
        errno.EINVAL,
        "multiple of the host",
    ),
    "slot number too high": (lambda at: slot(at, number=0xFFFF), errno.EINVAL, "number is past"),
    "past the last address": (
        lambda at: slot(at, base=(1 << 64) - PAGE, size=2 * PAGE),
        errno.EINVAL,
        "past the last address",
    ),
    "too many pages": (lambda at: slot(at, size=PAGE << 31), errno.EINVAL, "2^31 pages"),
    "tagged host address": (
        lambda at: slot(at, address=at.memory | 0x5A << 56),
        errno.EINVAL,
        "tagged",
    ),
    "nothing to delete": (lambda at: slot(at, size=0), errno.EINVAL, "to delete"),
    "unknown flag": (lambda at: slot(at, flags=1 << 20), errno.EINVAL, "does not know a flag"),
    "live slot's size": (lambda at: twice(at, size=2 * PAGE), errno.EINVAL, "live slot"),
    "live slot's host address": (
        lambda at: twice(at, address=at.memory + PAGE),
        errno.EINVAL,
        "live slot",
    ),
    "live slot becomes read-only": (
        lambda at: twice(at, flags=MemFlag.READONLY),
        errno.EINVAL,
        "live slot",
    ),
    "slots overlap": (lambda at: twice(at, number=1), errno.EEXIST, "another slot"),
    "closed descriptor": (closed_vm, errno.EBADF, "descriptor is closed"),
    "dirty log of no slot": (lambda at: at.vm.get_dirty_log(3, 1), errno.ENOENT, "not there"),
    "dirty log of a high slot": (
        lambda at: at.vm.get_dirty_log(0xFFFF, 1),
        errno.EINVAL,
        "number is past",
    ),
    "vCPU exists": (vcpu_twice, errno.EEXIST, "id exists"),
    "vCPU id too high": (lambda at: at.vm.create_vcpu(1 << 30), errno.EINVAL, "beyond the last"),
    "ioeventfd twice": (ioeventfd_twice, errno.EEXIST, "listens at this address"),
    "ioeventfd of 3 bytes": (
        lambda at: at.vm.ioeventfd(IPA, 3, eventfd(at)),
        errno.EINVAL,
        "none of 0, 1, 2, 4 and 8",
    ),
    "ioeventfd with a value, without a length": (
        lambda at: at.vm.ioeventfd(IPA, 0, eventfd(at), datamatch=1),
        errno.EINVAL,
        "no length",
    ),
    "ioeventfd that is a file": (
        lambda at: at.vm.ioeventfd(IPA, 4, file(at)),
        errno.EINVAL,
        "not an eventfd",
    ),
    "ioeventfd that is closed": (
        lambda at: at.vm.ioeventfd(IPA, 4, 1 << 20),
        errno.EBADF,
        "the eventfd is closed",
    ),
    "ioeventfd that is not there": (
        lambda at: at.vm.ioeventfd(IPA, 4, eventfd(at), deassign=True),
        errno.ENOENT,
        "no such eventfd",
    ),
    "no such device": (lambda at: at.vm.create_device(0xFFFF), errno.ENODEV, "no such device"),
    "capability that there is not": (
        lambda at: at.vm.enable_cap(0xFFFF),
        errno.EINVAL,
        "does not have the capability",
    ),
    "message route past the last": (
        lambda at: at.vm.set_gsi_routing([MsiRoute(1 << 20, 0, 0)]),
        errno.EINVAL,
        "past the last",
    ),
}


# --- arm64 ------------------------------------------------------------------------------------

DIST, REDIST = 0x800_0000, 0x80A_0000


def vcpu(at: Scene, number: int = 0, *features: int, start: bool = True):  # type: ignore[no-untyped-def]  # noqa: ANN201
    made = at.owned.enter_context(at.vm.create_vcpu(number))
    if start:
        init = at.vm.preferred_target()
        for each in features:
            init.features[0] |= 1 << each
        made.arm_vcpu_init(init)
    return made


def gic(at: Scene, *, addresses: bool = True, init: bool = True):  # type: ignore[no-untyped-def]  # noqa: ANN201
    device = at.owned.enter_context(at.vm.create_device(lib.KVM_DEV_TYPE_ARM_VGIC_V3))
    if addresses:
        for kind, base in ((2, DIST), (3, REDIST)):
            device.set_attr(lib.KVM_DEV_ARM_VGIC_GRP_ADDR, kind, ffi.new("uint64_t *", base))
    if init:
        device.set_attr(lib.KVM_DEV_ARM_VGIC_GRP_CTRL, lib.KVM_DEV_ARM_VGIC_CTRL_INIT)
    return device


def gic_attr(at: Scene, group: int, attr: int, value: int, *, times: int = 1) -> None:
    device = gic(at, addresses=False, init=False)
    kind = "uint32_t *" if group == lib.KVM_DEV_ARM_VGIC_GRP_NR_IRQS else "uint64_t *"
    for _ in range(times):
        device.set_attr(group, attr, ffi.new(kind, value))


def after(first: Fault, then: Fault) -> Fault:
    def both(at: Scene) -> None:
        first(at)
        then(at)

    return both


def differing_vcpus(at: Scene) -> None:
    vcpu(at, 0)
    vcpu(at, 1, lib.KVM_ARM_VCPU_PSCI_0_2)


ADDR, CTRL = lib.KVM_DEV_ARM_VGIC_GRP_ADDR, lib.KVM_ARM_VCPU_PMU_V3_CTRL
PMU = lib.KVM_ARM_VCPU_PMU_V3


def pmu_init(at: Scene, *, features: tuple[int, ...] = (PMU,), with_gic: bool = True) -> None:
    made = vcpu(at, 0, *features)
    if with_gic:
        gic(at)
    made.set_attr(CTRL, lib.KVM_ARM_VCPU_PMU_V3_INIT)


def _run_with_gic(at: Scene, *features: int, init: bool = True) -> None:
    made = vcpu(at, 0, *features)
    gic(at, init=init)
    made.run()


def _irqfd_twice(at: Scene) -> None:
    vcpu(at)
    gic(at)
    fd = eventfd(at)
    for gsi in (1, 2):
        at.vm.irqfd(fd, gsi)


def _flip_fwb(at: Scene) -> None:
    made = vcpu(at)
    value = made.get_one_reg(registers.ID_AA64MMFR2_EL1)
    made.set_one_reg(registers.ID_AA64MMFR2_EL1, value ^ 1 << 40)


ARM64: dict[str, tuple[Fault, int, str]] = {
    "IPA size too large": (lambda at: at.system.create_vm(1 << 60), errno.EINVAL, "IPA size"),
    "past the IPA size": (lambda at: slot(at, base=1 << 50), errno.EFAULT, "VM's IPA size"),
    "run without init": (lambda at: vcpu(at, start=False).run(), errno.ENOEXEC, "VCPU_INIT"),
    "unknown vCPU feature": (lambda at: vcpu(at, 0, 31), errno.ENOENT, "does not know a feature"),
    "half of pointer authentication": (
        lambda at: vcpu(at, 0, lib.KVM_ARM_VCPU_PTRAUTH_ADDRESS),
        errno.EINVAL,
        "without the other",
    ),
    "vCPUs that differ": (differing_vcpus, errno.EINVAL, "differ from those of the VM's other"),
    "no such register": (
        lambda at: vcpu(at).get_one_reg(registers.PC | 0xFFFF),
        errno.ENOENT,
        "no such register",
    ),
    "FWB is changed": (
        _flip_fwb,
        errno.EINVAL,
        "does not take this value",
    ),
    "second GIC": (
        after(lambda at: gic(at, init=False), gic),
        errno.EEXIST,
        "has one already",
    ),
    "vCPU after the GIC": (
        after(lambda at: (vcpu(at), gic(at)), lambda at: vcpu(at, 1)),
        errno.EBUSY,
        "initialised already",
    ),
    "GIC not aligned": (lambda at: gic_attr(at, ADDR, 2, 0x1000), errno.EINVAL, "64 KiB"),
    "GIC past the IPA size": (lambda at: gic_attr(at, ADDR, 2, 1 << 50), errno.E2BIG, "IPA size"),
    "GIC's address twice": (
        lambda at: gic_attr(at, ADDR, 2, DIST, times=2),
        errno.EEXIST,
        "set already",
    ),
    "65 interrupts": (
        lambda at: gic_attr(at, lib.KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, 65),
        errno.EINVAL,
        "multiple of 32",
    ),
    "no such attribute": (lambda at: gic_attr(at, 99, 0, 0), errno.ENXIO, "know the attribute"),
    "run with a GIC without addresses": (
        after(lambda at: gic(at, addresses=False, init=False), lambda at: vcpu(at).run()),
        errno.ENXIO,
        "GIC has no address",
    ),
    "run with a GIC that is not initialised": (
        lambda at: _run_with_gic(at, init=False),
        errno.EBUSY,
        "not initialised",
    ),
    "run with a PMU that is not initialised": (
        lambda at: _run_with_gic(at, PMU),
        errno.EINVAL,
        "PMU that is not initialised",
    ),
    "PMU of a vCPU without": (lambda at: pmu_init(at, features=()), errno.ENODEV, "has no PMU"),
    "PMU without its interrupt": (pmu_init, errno.ENXIO, "interrupt is not set"),
    "irqfd before the GIC": (lambda at: at.vm.irqfd(eventfd(at), 0), errno.EAGAIN, "no interrupt"),
    "interrupt without a GIC": (
        lambda at: at.vm.irq_line(1 << 24, 1),
        errno.ENXIO,
        "in the kernel",
    ),
    "irqfd that is bound": (
        _irqfd_twice,
        errno.EBUSY,
        "bound to an interrupt",
    ),
    "run with SVE that is not finalised": (
        lambda at: vcpu(at, 0, lib.KVM_ARM_VCPU_SVE).run(),
        errno.EPERM,
        "SVE",
    ),
}


HERE = FAULTS | (ARM64 if platform.machine() == "aarch64" else {})


@pytest.fixture
def scene(system: System, vm: Vm) -> Iterator[Scene]:
    with ExitStack() as owned, Mapping.anonymous(16 * PAGE) as memory:
        yield Scene(system, vm, memory.region(0).host_address, owned)


@pytest.mark.parametrize("name", HERE)
def test_the_first_cause_of_a_fault_is_the_right_one(scene: Scene, name: str) -> None:
    inject, number, words = HERE[name]
    with pytest.raises(KernelError) as raised:
        inject(scene)
    error = raised.value
    assert error.errno == number, error
    assert words in error.causes[0].what, [cause.what for cause in error.causes]
    assert words in str(error)


def test_there_are_enough() -> None:
    assert len(FAULTS | ARM64) >= 40
