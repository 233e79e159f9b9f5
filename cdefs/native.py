"""What goes into ``vmm._native``: the KVM ABI, libfdt, and pyvmm's own C."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

CDEFS = [
    "kvm_capability.cdef.h",
    "kvm.cdef.h",
    "run.cdef.h",
    "copy.cdef.h",
    "fdt.cdef.h",
    "vfio.cdef.h",
    "map.cdef.h",
    "spawn.cdef.h",
    "inflight.cdef.h",
    "fs.cdef.h",
    "pci.cdef.h",
    "pci_capability.cdef.h",
    "ring.cdef.h",
    "virtio.cdef.h",
    "blk.cdef.h",
    "net.cdef.h",
    "netlink.cdef.h",
    "vhost.cdef.h",
    "console.cdef.h",
    "balloon.cdef.h",
    "pmem.cdef.h",
]  # order matters: types before their users

PREAMBLE = """
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <libfdt.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/pci_regs.h>
#include <linux/rtnetlink.h>
#include <linux/fuse.h>
#include <linux/vhost.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_fs.h>
#include <linux/virtio_console.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_net.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_pmem.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_vsock.h>
#include "kvm_abi.h"
#include "vfio_abi.h"
#include "balloon.h"
#include "blk.h"
#include "inflight.h"
#include "net.h"
#include "ring.h"
#include "run.h"
#include "spawn.h"
"""

# Prototypes of copy.c and map.c, which have no headers because nothing else in C calls them.
PROTOTYPES = (HERE / "copy.cdef.h").read_text() + (HERE / "map.cdef.h").read_text()


def emit() -> None:
    """Write ``cdefs/_native.c``; compiling it and pyvmm's own C is setuptools' part."""
    ffi = FFI()
    for name in CDEFS:
        ffi.cdef((HERE / name).read_text())
    ffi.set_source("vmm._native", PREAMBLE + PROTOTYPES)
    ffi.emit_c_code(str(HERE / "_native.c"))


if __name__ == "__main__":
    emit()
