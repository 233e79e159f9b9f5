"""The interrupt controller that KVM emulates: GICv3 with ITS, or GICv2 where the host has one.

Source: Documentation/virt/kvm/devices/arm-vgic-v3.rst, arm-vgic-its.rst and arm-vgic.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib
from vmm.arm64 import layout
from vmm.closeable import Closeable
from vmm.errors import HostError
from vmm.fdt import Node, Value, reg, u32

if TYPE_CHECKING:
    from collections.abc import Collection

    from vmm.kvm.device import Device
    from vmm.kvm.vm import Vm

KINDS: Final = {
    "GICv3": lib.KVM_DEV_TYPE_ARM_VGIC_V3,
    "GICv2": lib.KVM_DEV_TYPE_ARM_VGIC_V2,
    "ITS": lib.KVM_DEV_TYPE_ARM_VGIC_ITS,
}
"""The devices of KVM's that a GIC is made of."""

GICV2_VCPUS: Final = 8
"""GICv2's distributor addresses eight CPU interfaces (IHI 0048, GICD_ITARGETSR)."""

PHANDLE: Final = 1
ITS_PHANDLE: Final = 2


class GicLine:
    """One shared peripheral interrupt, level-sensitive."""

    def __init__(self, vm: Vm, spi: int) -> None:
        self._vm = vm
        self._irq = lib.KVM_ARM_IRQ_TYPE_SPI << lib.KVM_ARM_IRQ_TYPE_SHIFT | layout.FIRST_SPI + spi

    def set_level(self, level: bool) -> None:  # noqa: FBT001  (a level *is* a boolean)
        """Set the line's level by KVM_IRQ_LINE."""
        self._vm.irq_line(self._irq, int(level))


class Gic(Closeable):
    """Own the VM's GIC, of `version` 2 or 3; a version 3 has an ITS where KVM emulates one.

    Construct it before the vCPUs run; call `initialise` after the last vCPU is created. Raises
    `HostError` if KVM emulates no GIC here, or none for *vcpus*. *kinds*: which of `KINDS` to use
    where KVM has them; None: all.
    """

    def __init__(self, vm: Vm, vcpus: int, kinds: Collection[str] | None = None) -> None:
        self._vm = vm
        self._kinds = frozenset(KINDS if kinds is None else kinds)
        self._vcpus = vcpus
        self._devices: list[Device] = []
        self.its: Device | None = None
        """The ITS, if there is one."""
        if self._can_create("GICv3"):
            self.version = 3
        elif self._can_create("GICv2"):
            self.version = 2
            if vcpus > GICV2_VCPUS:
                raise HostError(
                    f"{vcpus} vCPUs asked for, but this host's GICv2 can serve {GICV2_VCPUS}",
                    f"use --cpus {GICV2_VCPUS} or less, or a host with a GICv3",
                )
        else:
            raise HostError(
                "KVM on this host emulates neither GICv3 nor GICv2",
                "its device tree or ACPI tables lack the GIC's virtualization interface",
            )
        try:
            self._create()
        except BaseException:
            self.close()
            raise

    def _can_create(self, kind: str) -> bool:
        return kind in self._kinds and self._vm.can_create_device(KINDS[kind])

    def _create(self) -> None:
        if self.version == 2:
            gic = self._device(lib.KVM_DEV_TYPE_ARM_VGIC_V2)
            _place(gic, lib.KVM_VGIC_V2_ADDR_TYPE_DIST, layout.GIC_DISTRIBUTOR)
            _place(gic, lib.KVM_VGIC_V2_ADDR_TYPE_CPU, layout.GICV2_CPU_INTERFACE)
            return
        gic = self._device(lib.KVM_DEV_TYPE_ARM_VGIC_V3)
        _place(gic, lib.KVM_VGIC_V3_ADDR_TYPE_DIST, layout.GIC_DISTRIBUTOR)
        _place(gic, lib.KVM_VGIC_V3_ADDR_TYPE_REDIST, layout.GICV3_REDISTRIBUTORS)
        if self._can_create("ITS"):
            self.its = self._device(lib.KVM_DEV_TYPE_ARM_VGIC_ITS)
            _place(self.its, lib.KVM_VGIC_ITS_ADDR_TYPE, layout.GICV3_ITS)

    @property
    def has_its(self) -> bool:
        """Whether there is an ITS."""
        return self.its is not None

    @property
    def controller(self) -> Device:
        """The distributor with its redistributors or CPU interfaces."""
        return self._devices[0]

    def _device(self, kind: int) -> Device:
        device = self._vm.create_device(kind)
        self._devices.append(device)
        return device

    def initialise(self) -> None:
        """Initialise the GIC, after the last vCPU is created and before the first runs."""
        interrupts = ffi.new("uint32_t *", layout.FIRST_SPI + layout.SPI_COUNT)
        self._devices[0].set_attr(lib.KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, interrupts)
        for device in self._devices:
            device.set_attr(lib.KVM_DEV_ARM_VGIC_GRP_CTRL, lib.KVM_DEV_ARM_VGIC_CTRL_INIT)

    def line(self, spi: int) -> GicLine:
        """Return the line of shared peripheral interrupt *spi*, counted from 0."""
        return GicLine(self._vm, spi)

    def node(self) -> Node:
        """Return its device tree node."""
        return node(self.version, self._vcpus, has_its=self.has_its)

    def close(self) -> None:
        """Close the descriptors. KVM keeps the devices as long as the VM. Idempotent."""
        while self._devices:
            self._devices.pop().close()


def node(version: int, vcpus: int, *, has_its: bool) -> Node:
    """Return a GIC's device tree node (bindings arm,gic.yaml and arm,gic-v3.yaml)."""
    common: dict[str, Value] = {
        "#interrupt-cells": 3,
        "#address-cells": 2,
        "#size-cells": 2,
        "interrupt-controller": None,
        "ranges": None,
        "phandle": PHANDLE,
    }
    distributor = (layout.GIC_DISTRIBUTOR, layout.GIC_DISTRIBUTOR_SIZE)
    name = f"interrupt-controller@{layout.GIC_DISTRIBUTOR:x}"
    if version == 2:
        interface = (layout.GICV2_CPU_INTERFACE, layout.GICV2_CPU_INTERFACE_SIZE)
        common["compatible"] = "arm,cortex-a15-gic"
        common["reg"] = reg(distributor, interface)
        return Node(name, common)
    redistributors = (layout.GICV3_REDISTRIBUTORS, layout.GICV3_REDISTRIBUTOR_SIZE * vcpus)
    common["compatible"] = "arm,gic-v3"
    common["reg"] = reg(distributor, redistributors)
    its = Node(
        f"msi-controller@{layout.GICV3_ITS:x}",
        {
            "compatible": "arm,gic-v3-its",
            "reg": reg((layout.GICV3_ITS, layout.GICV3_ITS_SIZE)),
            "msi-controller": None,
            "#msi-cells": 1,
            "phandle": ITS_PHANDLE,
        },
    )
    return Node(name, common, [its] if has_its else [])


def spi(number: int, *, edge: bool = False) -> bytes:
    """Return ``interrupts`` for a shared peripheral interrupt: level-high, or a rising edge."""
    return u32(0, number, 1 if edge else 4)


def ppi(number: int, cpus: int = 0) -> bytes:
    """Return ``interrupts`` for a level-high private interrupt; *cpus* is a GICv2's CPU mask."""
    return u32(1, number, 4 | cpus << 8)


def _place(device: Device, kind: int, address: int) -> None:
    device.set_attr(lib.KVM_DEV_ARM_VGIC_GRP_ADDR, kind, ffi.new("uint64_t *", address))
