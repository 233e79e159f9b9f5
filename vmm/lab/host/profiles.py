"""All kinds of lab hosts: CPU, interrupt controller, kernel, devices."""

from __future__ import annotations

from vmm.errors import UserError
from vmm.lab.debian.stock import StockKernel
from vmm.lab.host import gh200
from vmm.lab.host.profile import Profile

DISK_SIZE = 64 << 20
"""Bytes of the vfio profile's NVMe disk."""

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            "fwb",
            "all that QEMU emulates: VHE, FEAT_S2FWB, DIC; GICv3; Debian's newest kernel",
            cpu="max,pauth-impdef=on",
        ),
        Profile(
            "nofwb",
            "a Neoverse N1, without FEAT_S2FWB; GICv3; Debian's newest kernel",
            cpu="neoverse-n1",
        ),
        Profile(
            "gicv2",
            "like fwb, but with a GICv2, as on small boards",
            cpu="max,pauth-impdef=on",
            gic=2,
        ),
        Profile(
            "16k",
            "like fwb, but with Debian's kernel that has pages of 16 KiB",
            cpu="max,pauth-impdef=on",
            kernel=StockKernel(flavour="arm64-16k"),
        ),
        Profile(
            "vfio",
            "fwb with an SMMU, and PCI devices behind it to give to guests",
            cpu="max,pauth-impdef=on",
            machine=("iommu=smmuv3",),
            kernel=StockKernel(extra=("e1000e", "nvme")),
            backends=(
                # A disk of zeroes. What is written goes to an unnamed temporary file of QEMU's.
                (
                    "-drive",
                    f"if=none,id=disk,snapshot=on,driver=null-co,size={DISK_SIZE},read-zeroes=on",
                ),
                # One network with two cards: one to pass to a guest, one for the host.
                ("-netdev", "hubport,id=given,hubid=1"),
                ("-netdev", "hubport,id=kept,hubid=1"),
            ),
            # By default edu has 28 address bits, which reach no RAM of this machine; 40 do.
            devices=(
                "edu,addr=0x10,dma_mask=0xffffffffff",
                "nvme,addr=0x11,serial=pyvmm,drive=disk",
                "bochs-display,addr=0x12,romfile=",
                # Functions of one device, and without ACS: one IOMMU group.
                "edu,addr=0x13.0,multifunction=on",
                "nvme,addr=0x13.1,serial=pyvmm2",
                "e1000e,addr=0x14,netdev=given,romfile=",
                "virtio-net-pci,addr=0x15,netdev=kept,romfile=",
            ),
        ),
        *gh200.profiles(),
    )
}
DEFAULT = "fwb"


def profile(name: str) -> Profile:
    """Return the profile called *name*. Raises UserError, which lists all profiles."""
    try:
        return PROFILES[name]
    except KeyError:
        raise UserError(
            f"there is no lab profile {name!r}", f"there are: {', '.join(PROFILES)}"
        ) from None
