"""The board's guest physical address map and its interrupts, as QEMU's virt machine has them.

    0x0000_0000  flash, two banks of 64 MiB (firmware)
    0x0800_0000  GIC distributor; 0x0801_0000  GICv2 CPU interface
    0x0808_0000  GICv3 ITS;       0x080a_0000  GICv3 redistributors, 128 KiB a vCPU
    0x0900_0000  PL011 UART;      0x0901_0000  PL031 RTC;   0x0902_0000  pvpanic
    0x0903_0000  PL061 GPIO;      0x090f_0000  VM generation ID
    0x0a00_0000  virtio-mmio transports, 512 bytes each
    0x1000_0000  PCI, 32-bit memory window
    0x3eff_0000  PCI I/O;         0x3f00_0000  PCI configuration space (ECAM), one bus
    0x4000_0000  RAM; above it, each aligned to its size: pmem files, device memory, and the 64-bit
                 memory window of PCI, which is above 4 GiB

Firmware and kernels built for that machine run on this board as well.
"""

from __future__ import annotations

from typing import Final

from vmm.address_range import AddressRange

FLASH: Final = 0x0000_0000
"""Two banks, one after the other. Firmware is started here."""

GIC_DISTRIBUTOR: Final = 0x0800_0000
GIC_DISTRIBUTOR_SIZE: Final = 0x1_0000
GICV2_CPU_INTERFACE: Final = 0x0801_0000
GICV2_CPU_INTERFACE_SIZE: Final = 0x1_0000
GICV3_ITS: Final = 0x0808_0000
GICV3_ITS_SIZE: Final = 0x2_0000
GITS_TRANSLATER: Final = GICV3_ITS + 0x1_0040
"""The register that devices write messages to (IHI 0069, 12.19)."""
GICV3_REDISTRIBUTORS: Final = 0x080A_0000
GICV3_REDISTRIBUTOR_SIZE: Final = 0x2_0000
GICV3_REDISTRIBUTORS_MAX: Final = (0x0900_0000 - GICV3_REDISTRIBUTORS) // GICV3_REDISTRIBUTOR_SIZE
"""vCPUs whose redistributors fit below the UART: 123."""

UART: Final = 0x0900_0000
RTC: Final = 0x0901_0000
PVPANIC: Final = 0x0902_0000
GPIO: Final = 0x0903_0000
DEVICE_SIZE: Final = 0x1000
"""Bytes of registers of each of the four."""

VMGENID: Final = 0x090F_0000
VMGENID_SIZE: Final = 0x1_0000
"""A page of memory, of whatever size the host's are."""

VIRTIO: Final = 0x0A00_0000
VIRTIO_SIZE: Final = 0x200
VIRTIO_SLOTS: Final = 32

PCI_MEMORY: Final = 0x1000_0000
PCI_MEMORY_SIZE: Final = 0x2EFF_0000
PCI_IO: Final = 0x3EFF_0000
PCI_IO_SIZE: Final = 0x1_0000
PCI_ECAM: Final = 0x3F00_0000
PCI_ECAM_SIZE: Final = 0x10_0000
PCI_SLOTS: Final = 32

RAM: Final = 0x4000_0000

SPI_UART: Final = 1
SPI_RTC: Final = 2
SPI_VMGENID: Final = 5
SPI_GPIO: Final = 7
SPI_VIRTIO: Final = 16
"""Slot 0's interrupt; slot n has SPI_VIRTIO + n."""
SPI_PCI: Final = 48
"""INTx of PCI slot 0, whatever the pin; slot n has SPI_PCI + n."""
SPI_COUNT: Final = 224
"""Shared peripheral interrupts; with the 32 private ones 256."""

POWER_KEY: Final = 3
"""The GPIO's line behind which the power button is."""

PPI_SECURE_TIMER: Final = 13
PPI_PHYSICAL_TIMER: Final = 14
PPI_VIRTUAL_TIMER: Final = 11
PPI_HYP_TIMER: Final = 10
PPI_PMU: Final = 7
"""Numbers of private peripheral interrupts; PPI n has interrupt id FIRST_PPI + n."""

FIRST_PPI: Final = 16
FIRST_SPI: Final = 32

REGISTERS: Final = {
    "GIC": AddressRange(GIC_DISTRIBUTOR, UART - GIC_DISTRIBUTOR),
    "PL011 UART": AddressRange(UART, DEVICE_SIZE),
    "PL031 RTC": AddressRange(RTC, DEVICE_SIZE),
    "pvpanic": AddressRange(PVPANIC, DEVICE_SIZE),
    "PL061 GPIO": AddressRange(GPIO, DEVICE_SIZE),
    "VM generation ID": AddressRange(VMGENID, VMGENID_SIZE),
    "virtio-mmio": AddressRange(VIRTIO, VIRTIO_SIZE * VIRTIO_SLOTS),
    "PCI memory": AddressRange(PCI_MEMORY, PCI_MEMORY_SIZE),
    "PCI I/O": AddressRange(PCI_IO, PCI_IO_SIZE),
    "PCI ECAM": AddressRange(PCI_ECAM, PCI_ECAM_SIZE),
}
"""Where accesses are trapped, by name."""


def virtio(slot: int) -> int:
    """Return the base of virtio-mmio slot *slot*."""
    return VIRTIO + VIRTIO_SIZE * slot
