"""Code whose system calls fail one at a time: parts of a machine, set up, used and torn down.

A scenario may raise a `VmmError`, which is the line that a user gets. Whatever happens, nothing of
it may be left: no descriptor, thread, process or file.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Final

from tests.arm64.kernel_files import arm64_image
from tests.faults import supervisor
from tests.kvm.tiny import DEVICE, Spin, Store, build
from tests.recorded import Recorded
from tests.virtio.block.blk_driver import OK, Disk
from tests.virtio.mmio_driver import MmioDriver
from tests.virtio.ring_driver import BASE, BUFFERS, Buffer, Memory, SplitDriver
from vmm import broker
from vmm.arm64 import image
from vmm.coherence.host_report import HostReport
from vmm.config.disk import parse_disk
from vmm.config.pmem import PmemConfig
from vmm.errors import EXHAUSTED, VmmError
from vmm.fd import EventFd
from vmm.kvm.exits import Interrupted, MmioWrite
from vmm.kvm.mmio_fastpath import MmioFastpath, Sink, ToSink
from vmm.kvm.system import System
from vmm.loop import Loop
from vmm.machine.flash_file import FlashFile
from vmm.memory import Mapping
from vmm.virtio import status
from vmm.virtio.block.open import open_disk
from vmm.virtio.console.chardev.pty import PtyChardev
from vmm.virtio.console.chardev.unix import UnixChardev
from vmm.virtio.device import F_VERSION_1
from vmm.virtio.net.device import Net
from vmm.virtio.net.registers import Address
from vmm.virtio.net.threads import ThreadBackend
from vmm.virtio.pmem_file import PmemFile
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport

FINE, REFUSED, LEFT, BUG = 0, 3, 10, 11
MIB: Final = 1 << 20
Scenario = Callable[[Path], None]


def probe(_place: Path) -> None:
    """Take the report of `pyvmm probe`."""
    assert HostReport.run().lines(everything=True)


def vcpu(_place: Path) -> None:
    """Run a vCPU with memory, and kick it."""
    with ExitStack() as owned:
        system = owned.enter_context(System.open())
        vm = owned.enter_context(system.create_vm())
        guest = build(vm, [Store(0, 7), Store(1, 8), Spin()], owned)
        sink = owned.enter_context(Sink())
        sink.take_stores(True)  # noqa: FBT003
        guest.vcpu.set_answers(MmioFastpath([ToSink(DEVICE, sink)]))
        bell = owned.enter_context(EventFd())
        vm.ioeventfd(DEVICE + 2, 1, bell.fileno(), datamatch=1)
        while (found := guest.vcpu.run()) == Interrupted():
            pass
        assert found == MmioWrite(DEVICE + 1, 1, 8)
        assert sink.drain() == b"\7"
        guest.vcpu.kick()
        guest.vcpu.run()
        vm.ioeventfd(DEVICE + 2, 1, bell.fileno(), datamatch=1, deassign=True)


def memory(_place: Path) -> None:
    """Map guest memory of each kind."""
    for make in (Mapping.anonymous, Mapping.memfd):
        with make(4 * MIB) as mapping:
            mapping.view[0] = 1


def disk(place: Path) -> None:
    """Write a disk and read it, by its thread, with io_uring or without."""
    guest = Memory()
    try:
        config = parse_disk(str(place / "disk.img"))
        device = open_disk("disk0", config, MemoryMap(guest.guest), Recorded())
        with MmioTransport(device) as transport:
            made = Disk(transport, guest, place / "disk.img")
            made.start()
            if device.status & 0x40:
                return  # the driver sees a device that needs a reset
            if made.write(0, b"x" * 512) == OK:
                assert made.read(0, 512) == b"x" * 512
    finally:
        guest.close()


def network(_place: Path) -> None:
    """Send a packet by a network device and its threads."""
    guest = Memory()
    try:
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        with ours, theirs:
            backend = ThreadBackend([theirs.fileno()], offers=0)
            known = MemoryMap(guest.guest)
            device = Net("net0", known, Recorded(), Address(bytes(6)), backend=backend)
            with MmioTransport(device) as transport:
                driver = MmioDriver(transport)
                rings = [SplitDriver(guest, 64, at=BASE + 0x1_0000 * i) for i in range(2)]
                driver.negotiate(F_VERSION_1)
                for index, ring in enumerate(rings):
                    driver.set_queue(index, 64, ring.areas)
                driver.add_status(status.DRIVER_OK)
                rings[1].add(Buffer(BUFFERS, 72))
                driver.store("QueueNotify", 1)
    finally:
        guest.close()


def consoles(place: Path) -> None:
    """Run a loop with a socket and a pseudo-terminal for consoles."""
    with broker.current(), Loop() as loop, ExitStack() as owned:
        for chardev in (
            lambda: UnixChardev(loop, place / "console", "--console"),
            lambda: PtyChardev(loop, "--console"),
        ):
            made = owned.enter_context(chardev())
            made.on_change = lambda _error: None
            made.start()
        done: list[int] = []
        loop.call_later(0.001, lambda: done.append(1))
        loop.run(until=lambda: bool(done))


def persistent(place: Path) -> None:
    """Make, map and synchronise a file of persistent memory."""
    with PmemFile(PmemConfig(place / "memory.img", size=4 * MIB)) as file:
        file.sync()
    (place / "memory.img").unlink()


def flash(place: Path) -> None:
    """Make a bank of flash in a file, and write it."""
    with FlashFile(place / "flash.fd", option="--flash", read_only=False, make=True) as file:
        file.write(0, b"\1\2\3\4")
        file.sync()
    (place / "flash.fd").unlink()


def kernel(place: Path) -> None:
    """Load a kernel."""
    image.load(place / "Image", 64 * MIB)


SCENARIOS: Final[dict[str, Scenario]] = {
    each.__name__: each
    for each in (probe, vcpu, memory, disk, network, consoles, persistent, flash, kernel)
}


def descriptors() -> set[str]:
    """Return what descriptors are open."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(f"{path.name} {path.readlink()}")
    return found


def sockets(place: Path) -> set[str]:
    """Return what sockets have names in *place*."""
    return {f"{path} socket" for path in place.iterdir() if path.is_socket()}


def attempt(scenario: Scenario, place: Path, report: int) -> int:
    """Run *scenario*; return `FINE` or `REFUSED`, or what is wrong, which goes to *report*."""
    threads = threading.active_count()
    before = descriptors() | sockets(place)
    said = ""
    result = FINE
    try:
        with supervisor.counted():
            scenario(place)
    except VmmError as refusal:
        result, said = REFUSED, str(refusal)
        if "\n" in said:
            result = BUG
    except OSError as failure:
        result, said = REFUSED, str(failure)
        if failure.errno not in EXHAUSTED:
            result, said = BUG, traceback.format_exc()
    except BaseException:  # noqa: BLE001  (a finding)
        result, said = BUG, traceback.format_exc()
    gc.collect()
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(5)
    after = descriptors() | sockets(place)
    left = sorted({each.split(" ")[0] for each in after} - {each.split(" ")[0] for each in before})
    if result != BUG and (left or threading.active_count() != threads):
        result = LEFT
        said += f"\nleft: {[each for each in after if each.split(' ')[0] in left]}, "
        said += f"{threading.enumerate()}"
    os.pwrite(report, said.encode()[-4000:], 0)
    return result


def prepare(place: Path) -> None:
    """Make the files that scenarios want."""
    (place / "disk.img").write_bytes(bytes(MIB))
    (place / "Image").write_bytes(arm64_image())


@cache
def warm(name: str) -> None:
    """Run a scenario here once: imports are no subject."""
    with TemporaryDirectory() as directory:
        prepare(Path(directory))
        SCENARIOS[name](Path(directory))


def inject(name: str, fault: supervisor.Fault | None = None) -> tuple[supervisor.Outcome, str]:
    """Run scenario *name* in a child, with *fault*; return the outcome and what was said."""
    place = Path(mkdtemp(prefix="pyvmm-fault-"))
    warm(name)
    prepare(place)
    report = os.memfd_create("report")
    try:
        outcome = supervisor.run(lambda: attempt(SCENARIOS[name], place, report), fault)
        return outcome, os.pread(report, 4096, 0).decode(errors="replace")
    finally:
        os.close(report)
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
