"""The recipe of ``vmm._native``: the KVM ABI, libfdt and pyvmm's own C, and how they are compiled.

    python cdefs/native.py OUTPUT COMPILER [FLAG...]

builds the extension with a compiler of your choice, a cross compiler for example. It needs this
directory and cffi, nothing else. `backend.py` builds it with setuptools instead.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cffi import FFI

NAME = "vmm._native"
HERE = Path(__file__).parent
GENERATED = HERE / "_native.c"

COMPILE = ["-std=gnu11", "-O2", "-Wall", "-Wextra"]
LINK = ["-l:libfdt.a"]  # static: a wheel needs nothing from the machine

CDEFS = [
    "kvm_capability.cdef.h",
    "kvm.cdef.h",
    "observe.cdef.h",
    "run.cdef.h",
    "copy.cdef.h",
    "sanitizer.cdef.h",
    "fdt.cdef.h",
    "vfio.cdef.h",
    "map.cdef.h",
    "sandbox.cdef.h",
    "seal.cdef.h",
    "isolate.cdef.h",
    "sigbus.cdef.h",
    "walls.cdef.h",
    "spawn.cdef.h",
    "inflight.cdef.h",
    "fs.cdef.h",
    "pci.cdef.h",
    "pci_capability.cdef.h",
    "dirty.cdef.h",
    "ring.cdef.h",
    "virtio.cdef.h",
    "blk.cdef.h",
    "net.cdef.h",
    "netlink.cdef.h",
    "vhost.cdef.h",
    "console.cdef.h",
    "balloon.cdef.h",
    "pmem.cdef.h",
    "stage1.cdef.h",
]  # order matters: types before their users

PREAMBLE = """
#include <signal.h>
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
#include "dirty.h"
#include "inflight.h"
#include "migrate.h"
#include "net.h"
#include "observe.h"
#include "ring.h"
#include "run.h"
#include "sandbox.h"
#include "sanitizer.h"
#include "seal.h"
#include "isolate.h"
#include "spawn.h"
#include "walls.h"
#include "stage1.h"
"""

# Prototypes of C files without headers: nothing else in C calls them.
PROTOTYPES = "".join((HERE / f"{name}.cdef.h").read_text() for name in ("copy", "map", "sigbus"))


def sources() -> list[Path]:
    """Return every C file of the extension: `GENERATED`, which `emit` writes, and pyvmm's own."""
    return sorted({GENERATED, *HERE.glob("*.c")})


def dependencies() -> list[Path]:
    """Return what else of this directory is for the extension: headers, cdefs, policy, Python."""
    return sorted(path for kind in ("h", "py", "md", "toml") for path in HERE.glob(f"*.{kind}"))


def declarations() -> FFI:
    """Return the cdefs, parsed."""
    ffi = FFI()
    for name in CDEFS:
        ffi.cdef((HERE / name).read_text())
    return ffi


def emit() -> None:
    """Write `GENERATED` from the cdefs."""
    ffi = declarations()
    ffi.set_source(NAME, PREAMBLE + PROTOTYPES)
    ffi.emit_c_code(str(GENERATED))


def main(output: str, compiler: str, *flags: str) -> int:
    """Build the extension as the file *output*; return the compiler's exit status."""
    emit()
    own = ["-shared", "-fPIC", *COMPILE, f"-I{HERE}"]
    done = subprocess.run(
        [compiler, *own, *flags, *map(str, sources()), *LINK, "-o", output], check=False
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
