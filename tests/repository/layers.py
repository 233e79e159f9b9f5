"""The layers of vmm: which part may import which. The table is the architecture.

A part is a module or a package, named by its dotted path below vmm; the longest name that fits
counts. Imports point down: to a lower layer, or into the part itself. `BESIDE` lists what a part
imports of its own layer, with the reason. Imports for types only may also go sideways.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Layer(NamedTuple):
    """One floor of the house: its name, and its parts with what each is for."""

    name: str
    parts: dict[str, str]


LAYERS: Final = (  # lowest first
    Layer(
        "ground",
        {
            "_native": "the C of cdefs/",
            "cause": "what an errno may mean",
            "errors": "errors by who must act: user, host, guest",
            "closeable": "what a `with` closes",
            "events": "JSON lines about a machine",
            "thread": "threads that are started or are an error",
            "dirty_pages": "pages that this process writes for the guest",
            "address_range": "half-open intervals of addresses",
            "typed_json": "dataclasses as JSON, and back",
            "fd": "file descriptors and the one door for ioctls",
        },
    ),
    Layer(
        "mechanisms",
        {
            "config": "what to build: one module an option",
            "bus": "guest addresses to devices",
            "irq": "interrupt lines as devices see them",
            "fdt": "device trees, by libfdt",
            "loop": "the main thread's event loop",
            "long_work": "work that leaves a loop its turns",
            "sandbox": "what threads may ask of the kernel",
            "sigbus": "mapped files that lose pages",
            "broker": "the process that starts daemons and pays debts",
            "run_directory": "where lab hosts and running machines have their sockets",
            "memory": "guest memory: mappings found by guest address",
            "image_lock": "flock on images",
            "cpio": "archives that Linux unpacks as its initial file system",
            "lab": "emulated hosts: protocol, cache, progress",
        },
    ),
    Layer(
        "interfaces",
        {
            "kvm": "one class per kind of KVM descriptor",
            "terminal": "the user's terminal and the serial console",
            "pci": "host bridge, configuration space, MSI-X",
            "devices": "chips without virtio",
            "lab.inside": "what runs inside an emulated host",
            "lab.debian": "Debian's packages, unpacked and packed",
        },
    ),
    Layer(
        "devices and the architecture",
        {
            "virtio": "devices, queues, status, transports, vhost",
            "vfio": "the host's side of a device",
            "arm64": "everything ARM that is not a chip",
            "lab.kernel": "kernels built from source",
            "lab.guest": "small guests",
        },
    ),
    Layer(
        "the subject",
        {
            "coherence": "what memory is promised, proved and owed",
            "observe": "counters, traces and phases of a run",
            "lab.host": "emulated hosts from outside",
        },
    ),
    Layer(
        "assignment and state",
        {
            "passthrough": "the guest's side of a VFIO device",
            "state": "what leaves a machine, and where it may go",
            "uapi": "KVM's interface as data: what a kernel has besides, what was asked of it",
        },
    ),
    Layer("machine", {"machine": "one machine and its life"}),
    Layer("debugging", {"debug": "look into a running guest: gdb, the watchdog"}),
    Layer("library", {"library": "`import vmm`: machines driven from Python"}),
    Layer("control", {"control": "requests to a running machine over its socket"}),
    Layer("command line", {"cli": "options to a machine; errors to one line and a status"}),
)

BESIDE: Final = {
    ("observe", "coherence"): "a run's page has the map of its memory",
    ("thread", "errors"): "a thread that cannot start is a HostError",
    ("errors", "cause"): "an error of the kernel's says what it may come from",
    ("fd", "cause"): "a failed ioctl has causes",
    ("typed_json", "errors"): "a wrong member is a UserError",
    ("fd", "errors"): "a failed ioctl is a KernelError",
    ("fd", "closeable"): "descriptors are owned",
    ("fd", "_native"): "ioctls go through C",
    ("dirty_pages", "_native"): "marks are set in C",
    ("thread", "_native"): "filters are installed in C",
}
"""Imports within a layer that are wanted: (importer, imported), and why."""

NEVER: Final = {
    "devices": ("kvm", "arm64"),
    "virtio": ("kvm", "arm64"),
    "pci": ("kvm", "arm64"),
    "lab": ("kvm", "machine", "virtio", "vfio", "arm64"),
}
"""Downwards, but still not. Chips run on any machine, in milliseconds; a lab is not a machine."""


ONLY: Final = {"lab": ("lab", "library", "cli")}
"""Part, and who alone may import of it: a machine knows nothing of the lab."""


def part(module: str) -> str | None:
    """Return the part that *module*, a dotted path below vmm, belongs to."""
    names = module.split(".")
    for length in range(len(names), 0, -1):
        name = ".".join(names[:length])
        if any(name in layer.parts for layer in LAYERS):
            return name
    return None


def rank(name: str) -> int:
    """Return the floor of part *name*, 0 for the lowest."""
    return next(level for level, layer in enumerate(LAYERS) if name in layer.parts)


def complaint(importer: str, imported: str, *, typing: bool = False) -> str | None:
    """Return what is wrong with *importer* importing *imported*, modules below vmm; or None."""
    me, them = part(importer), part(imported)
    if me is None or them is None:
        return f"vmm.{imported if me else importer} is in no layer: where does it belong?"
    if any(them == name or them.startswith(f"{name}.") for name in _never(me)):
        return f"{me} must never import {them}"
    for guarded, allowed in ONLY.items():
        if _top(them) == guarded and _top(me) not in allowed:
            return f"{me} must not import {them}, which only {' and '.join(allowed)} may"
    if rank(them) > rank(me):
        return f"{me} must not import {them}, which is above it"
    if rank(them) == rank(me) and me != them and not typing and (me, them) not in BESIDE:
        return f"{me} must not import {them}, which is beside it"
    return None


def _never(me: str) -> tuple[str, ...]:
    return NEVER.get(me) or NEVER.get(_top(me)) or ()


def _top(name: str) -> str:
    return name.split(".", maxsplit=1)[0]
