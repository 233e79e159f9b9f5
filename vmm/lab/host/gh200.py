"""An emulated Grace Hopper GPU: hardware to which the real nvgrace-gpu driver binds.

The driver needs memory that the CPU reaches coherently and that firmware describes as the GPU's,
and a PCI function whose BAR 0 says that the GPU is ready:

    host physical       0x40000000          0xc0000000                        0x120000000
    RAM (-m 4G)         | the host's, mem=2G | usemem 512M | resmem 1G        | pmem 64M |
                                             `-- nvidia,gpu-mem-base-pa, gpu-mem-size
    PCI 00:10.0         bochs-display: BAR 0 is 16 MiB of memory -> VFIO region 0
                                                  resmem  -> VFIO region 2, Normal-NC
                                                  usemem  -> VFIO region 4, cacheable

On real machines the two properties come from ACPI; the driver reads either
(drivers/vfio/pci/nvgrace-gpu/main.c, nvgrace_gpu_fetch_memory_property).
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from vmm.lab.host.profile import Profile
from vmm.lab.kernel.flavour import BuiltKernel

MEMORY = 4 << 30
"""Bytes of RAM of the emulated machine, the GPU's included."""
HOST_MEMORY = 2 << 30
"""Bytes of it that the host's kernel uses."""
GPU_MEMORY = 0x60000000
"""Bytes of it that are the GPU's. nvgrace-gpu takes 1 GiB of them as resmem; usemem is the rest,
rounded down to a multiple of 512 MiB."""

PMEM_SIZE = 64 << 20
"""Bytes after the GPU's that are /dev/pmem0, for file systems with DAX."""

COMMAND_LINE = f"mem={HOST_MEMORY >> 20}M"
MACHINE = ("iommu=smmuv3",)

_RAM_BASE = 0x40000000  # QEMU, hw/arm/virt.c, base_memmap
_SLOT = 0x10
"""A PCI device number above those that QEMU assigns by itself."""

BDF = f"0000:00:{_SLOT:02x}.0"
"""The GPU's PCI address."""

DEVICES = (f"bochs-display,addr={_SLOT:#x},romfile=",)

_NO_FWB = "on a Neoverse N1, without FEAT_S2FWB"

DAX = "/run/dax"
"""A directory of the host that is a file system with DAX, on the persistent memory."""

SETUP = (
    f"python3 -I -c {shlex.quote((Path(__file__).parents[1] / 'inside' / 'gpu.py').read_text())}",
    f"mkdir {DAX} && mke2fs -b 4096 /dev/pmem0 >/dev/null",
    f"mount -t ext4 -o dax=always /dev/pmem0 {DAX}",
)
"""Shell commands that make the GPU and the file system ready in a host that is up."""


def add_gpu(path: Path) -> None:
    """Add the GPU to the device tree in the file *path*, which QEMU wrote."""
    from vmm import fdt

    root = fdt.loads(path.read_bytes())
    (bridge,) = (node.name for node in root.children if node.name.startswith("pcie@"))
    gpu = fdt.Node(
        f"gpu@{_SLOT:x},0",
        {
            # IEEE 1275 PCI binding: phys.hi is bus << 16 | device << 11 | function << 8.
            "reg": fdt.u32(_SLOT << 11, 0, 0, 0, 0),
            "nvidia,gpu-mem-base-pa": fdt.u64(_RAM_BASE + HOST_MEMORY),
            "nvidia,gpu-mem-size": fdt.u64(GPU_MEMORY),
        },
    )
    base = _RAM_BASE + HOST_MEMORY + GPU_MEMORY
    # Documentation/devicetree/bindings/pmem/pmem-region.yaml
    pmem = fdt.Node(
        f"pmem@{base:x}",
        {
            "compatible": "pmem-region",
            "reg": fdt.u64(base, PMEM_SIZE),
            "volatile": b"",
        },
    )
    path.write_bytes(fdt.dumps(root.insert(f"/{bridge}", gpu).insert("/", pmem)))


def profiles() -> tuple[Profile, ...]:
    """Return the hosts with the GPU: one for each generation of KVM's interface and CPU."""
    fwb = Profile(
        "gh200",
        "fwb with an emulated Grace Hopper GPU; 7.x built here, with nvgrace-gpu",
        cpu="max,pauth-impdef=on",
        memory=MEMORY,
        kernel=BuiltKernel("mainline"),
        command_line=COMMAND_LINE,
        machine=MACHINE,
        devices=DEVICES,
        device_tree=add_gpu,
        setup=SETUP,
    )
    designs = {
        "rfc": "gh200 whose kernel has the proposed memory-slot flag for write-back",
        "posted": "gh200 whose kernel has that flag as a series had it, with capability 240",
        "percap": "gh200 whose kernel wants a capability enabled for each VM",
        "vendor": "gh200 whose kernel follows the VMA and has no capability to say so",
    }
    legacy = replace(
        fwb,
        name="legacy-gh200",
        description="gh200 with 6.12, which maps cacheable device memory as Device",
        kernel=BuiltKernel("legacy"),
    )
    kinds = [
        fwb,
        *(
            replace(fwb, name=name, description=description, kernel=BuiltKernel(name))
            for name, description in designs.items()
        ),
        legacy,
    ]
    return tuple(profile for kind in kinds for profile in (kind, _without_fwb(kind)))


def _without_fwb(kind: Profile) -> Profile:
    name, description = f"{kind.name}-nofwb", f"{kind.name}, {_NO_FWB}"
    return replace(kind, name=name, description=description, cpu="neoverse-n1")
