"""The memory of a machine's guest physical (IPA) space: RAM, files, and device memory.

It lasts from reset to reset. Each power cycle's VM gets its memory slots from here. Modules of
`vmm.coherence` are imported on use: a guest of plain RAM needs none, and an import costs 10 ms or
more in an emulated host.
"""

from __future__ import annotations

import mmap
from contextlib import ExitStack
from functools import cached_property, partial
from typing import TYPE_CHECKING

from vmm._native import lib
from vmm.address_range import AddressRange
from vmm.arm64 import board, layout
from vmm.closeable import Closeable
from vmm.errors import HostError, UserError
from vmm.memory import Backing, GuestMemory, Mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vmm.bus import MmioBus
    from vmm.coherence.capability import HostCapability
    from vmm.coherence.ledger import Ledger
    from vmm.coherence.policy import Promise
    from vmm.config import MachineConfig
    from vmm.events import Events
    from vmm.fdt import Node
    from vmm.kvm.fd import KvmError
    from vmm.kvm.slots import MemorySlot, MemorySlots
    from vmm.kvm.system import System
    from vmm.loop import Loop
    from vmm.memory import Region
    from vmm.passthrough.region_memory import RegionMemory
    from vmm.uapi.profile import UapiProfile
    from vmm.vfio.device import VfioDevice
    from vmm.virtio.pmem_file import PmemFile

PMEM_ALIGNMENT = 1 << 30
"""Bytes. A section of Linux's memory model (128 MiB, or 512 MiB with 64 KiB pages) must not contain
both RAM and persistent memory."""

SLOT_PAGES = (1 << 31) - 1
"""KVM_MEM_MAX_NR_PAGES (include/linux/kvm_host.h): larger slots are EINVAL."""


def check_apart(bars: Sequence[tuple[str, AddressRange]]) -> None:
    """Raise `UserError` if two of *bars*, names and guest physical addresses, overlap."""
    for number, (name, addresses) in enumerate(bars):
        for other, taken in bars[:number]:
            if addresses.overlaps(taken):
                raise UserError(
                    f"--bar {name}: {addresses} overlaps --bar {other} at {taken}",
                    "leave one of the addresses out, or use another",
                )


class AddressSpace(Closeable):
    """Own the memory behind guest physical addresses. Use as a context manager.

    `memory` is RAM and pmem files. With *shared* RAM is a memfd, which other processes can map;
    it has huge pages only where the host gives them to shared memory. Raises `UserError` and
    `HostError` before any VM exists that a guest runs in.
    """

    def __init__(self, config: MachineConfig, system: System, *, shared: bool = False) -> None:
        self._config = config
        self._system = system
        self._owned = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            self._check_memory()
            self._profile = self._read_profile()
            self._mapping = self._owned.enter_context(self._map_ram(shared=shared))
            self.ram = AddressRange(layout.RAM, config.memory)
            self.pmems = self._open_pmems()
            files = [each.region() for each in self.pmems]
            self.memory = GuestMemory([self._mapping.region(layout.RAM), *files])
            self._ram_flags = self._decide_ram()
            self._slots: MemorySlots | None = None
            self._reserved = 0
            self._bars: list[RegionMemory] = []
            self.numa_nodes = 1
            self._devices = self._open_devices()
            undo.pop_all()

    def _map_ram(self, *, shared: bool) -> Mapping:
        size = self._config.memory
        if self._config.sanitizer and not self.capability.forces_write_back:
            from vmm.coherence.sanitizer import TwoCopies

            return TwoCopies(size)
        return Mapping.memfd(size) if shared else Mapping.anonymous(size)

    def _check_memory(self) -> None:
        page = mmap.PAGESIZE
        if self._config.memory % page:
            raise UserError(
                f"--memory: {self._config.memory} bytes are not a multiple of the host's page "
                f"of {page >> 10} KiB",
                "use whole MiB",
            )
        self._check_end("--memory", layout.RAM, self._config.memory, "use less")
        if self._config.memory > SLOT_PAGES * page:
            raise UserError(
                f"--memory: {self._config.memory >> 30} GiB are more than the "
                f"{SLOT_PAGES * page >> 30} GiB that KVM can have in one memory slot",
                "use less",
            )

    def _read_profile(self) -> UapiProfile | None:
        """Read the file of ``--uapi-profile``; VMs then have what it enables."""
        if self._config.uapi_profile is None:
            return None
        from vmm.uapi.profile import UapiProfile

        profile = UapiProfile.load(self._config.uapi_profile)
        self._system.vm_capabilities = (*self._system.vm_capabilities, *profile.enabled)
        return profile

    def _decide_ram(self) -> int:
        asked = self._profile.ram_bits if self._profile else 0
        if not self._config.write_back:
            return asked  # the kernel need not be probed before the ledger is read
        from vmm.coherence.policy import Map, Refuse, decide_ram

        decision = decide_ram(self.capability, write_back=True)
        if isinstance(decision, Refuse):
            raise HostError(decision.because, decision.remedy)
        return asked | int(decision.flags) if isinstance(decision, Map) else asked

    def _open_pmems(self) -> list[PmemFile]:
        """Open the files of ``--pmem``, and place them above RAM."""
        if not self._config.pmems:
            return []
        from vmm.coherence import vma
        from vmm.virtio.pmem_file import PmemFile

        found: list[PmemFile] = []
        base = self.ram.end
        for config in self._config.pmems:
            base = -(-base // PMEM_ALIGNMENT) * PMEM_ALIGNMENT
            check = partial(self._check_end, config.option, base)
            check(config.size, "use less --memory")  # before a file is made
            file = self._owned.enter_context(PmemFile(config))
            check(file.size, "use less --memory")
            file.base = base
            behind = vma.check_file(config.option, file.region().host_address)
            mixed = behind is not None and behind.is_mixedmap
            if mixed or file.is_dax is not False:
                from vmm.coherence import dax

                dax.check(config.option, self._system, file.region(), file.fileno())
            base += file.size
            found.append(file)
        return found

    def _open_devices(self) -> list[RegionMemory]:
        if not self._config.bars:
            return []
        from vmm.passthrough.region_memory import open_all

        found = open_all(
            self._config.bars, self._system, self.capability, self._owned, self._files_end
        )
        check_apart([(each.name, AddressRange(each.base, each.size)) for each in found])
        for region in found:
            if region.base < self._files_end:
                raise UserError(
                    f"--bar {region.name}: {region.base:#x} is not above RAM, which ends at "
                    f"{self._files_end:#x}",
                    "leave the address out, or use a higher one",
                )
            if region.base % mmap.PAGESIZE:
                raise UserError(
                    f"--bar {region.name}: {region.base:#x} is not a multiple of the host's page "
                    f"of {mmap.PAGESIZE >> 10} KiB",
                    "leave the address out, or round it",
                )
            self._check_end(
                f"--bar {region.name}",
                region.base,
                region.size,
                "use a lower address, or less --memory",
            )
        return found

    def _check_end(self, what: str, base: int, size: int, remedy: str) -> None:
        bits = self._system.ipa_bits()
        if base + size > 1 << bits:
            raise UserError(
                f"{what}: {size:#x} bytes at {base:#x} end beyond the {bits} bits of guest "
                "physical address that this host's KVM can map",
                remedy if size <= (1 << bits) - layout.RAM else "it is too large for this host",
            )

    @cached_property
    def capability(self) -> HostCapability:
        """The host's support for cacheable memory, after ``--uapi``. Raises `KvmError`."""
        from vmm.coherence.capability import HostCapability
        from vmm.coherence.policy import with_uapi

        found = with_uapi(HostCapability.probe(self._system), self._config.uapi)
        found.prepare(self._system)
        return found

    @property
    def end(self) -> int:
        """The first guest physical address after all memory and reservations."""
        ends = [region.base + region.size for region in self._devices]
        return max([self._files_end, self._reserved, *ends])

    @property
    def _files_end(self) -> int:
        """The first guest physical address after RAM and pmem files."""
        return max([self.ram.end, *(each.base + each.size for each in self.pmems)])

    @property
    def dma(self) -> list[Region]:
        """The memory that devices may access by DMA: RAM. Pages of files cannot be pinned."""
        return [region for region in self.memory if region.backing is not Backing.FILE]

    def register_bars(self, memories: Iterable[RegionMemory]) -> int | None:
        """Enter the BARs of a passed-through device, which the guest places, into the ledger.

        Return the NUMA node of those that are as cacheable as RAM; None if there are none.
        """
        bars = list(memories)
        self._bars.extend(bars)
        if not any(bar.coherent for bar in bars):
            return None
        self.numa_nodes += 1
        return self.numa_nodes - 1

    def reserve(self, end: int) -> None:
        """Make the VM's guest physical space reach *end*: slots will come and go there."""
        self._reserved = max(self._reserved, end)

    # --- what a power cycle needs ---------------------------------------------------------------

    def attach(self, bus: MmioBus, events: Events) -> None:
        """Attach handlers of device memory that gets no slot to *bus*. Raises `UserError`."""
        for region in self._devices:
            try:
                bus.attach(region.base, region.size, region.trap(events))
            except ValueError as error:
                raise UserError(f"--bar {region.name}: {error}", "use another address") from error

    def verify(self, events: Events) -> None:
        """Prove on scratch VMs that stage 2 keeps its promises. Raises `HostError` if not."""
        for region in (*self._devices, *self._bars):
            for verdict in region.verify():
                events.emit("verdict", what=region.name, **verdict.as_json())
                region.check(verdict)

    def watch(self, loop: Loop, on_removal: Callable[[str], None]) -> None:
        """Give devices back when the host requests them (unbind, unplug); the guest goes on.

        *on_removal* gets the device's address.
        """
        first = {region.device: region for region in reversed(self._devices)}
        for device, region in first.items():
            if (fd := region.removal_fd()) is not None:
                loop.add_reader(fd, partial(self._give_back, device, fd, loop, on_removal))
                self._owned.callback(loop.remove_reader, fd)

    def _give_back(
        self, device: VfioDevice, fd: int, loop: Loop, on_removal: Callable[[str], None]
    ) -> None:
        loop.remove_reader(fd)
        for region in self._devices:
            if region.device is device:
                region.unplug(self._slots, "the host took the device back")
        device.close()
        on_removal(device.bdf)

    def plug(self, slots: MemorySlots) -> None:
        """Register a VM's memory slots. Raises `KvmError`, or a `HostError` that explains it."""
        self._slots = slots
        for region in self.memory:
            flags = self._flags(region)
            address = region.slot_address or region.host_address
            slots.add(region.base, region.size, address, flags)
        for device in self._devices:
            device.plug(slots)

    def _flags(self, region: Region) -> int:
        """Return the KVM_MEM_* flags of RAM or a pmem file."""
        return self._ram_flags | (lib.KVM_MEM_READONLY if region.read_only else 0)

    def start(self) -> None:
        """Do for the coherency sanitizer what KVM does as it maps memory. No vCPU has run."""
        self._mapping.first_map()

    @property
    def ram_region(self) -> Region:
        """RAM, without files."""
        return next(region for region in self.memory if region.base == self.ram.base)

    def load(self, fd: int) -> None:
        """Fill RAM from the file *fd*, as long as RAM, before any VM maps it. Raises OSError."""
        self._mapping.load(fd)

    def unplug(self) -> None:
        """Forget the slots of a VM that is gone."""
        self._slots = None

    def nodes(self) -> list[Node]:
        """Return the device tree nodes of coherent device memory."""
        return board.coherent_memory(
            [
                AddressRange(region.base + part.base, part.size)
                for region in self._devices
                for part in region.coherent
            ]
        )

    def before_confined(self, *, needs_ledger: bool) -> None:
        """Import and open what `explain_fault` may need, and `ledger` if it will be called."""
        if self._devices or self._bars:
            from vmm.coherence import explain, vma  # noqa: F401  (there is no import later)

            vma.keep()
        if needs_ledger:
            from vmm.coherence import chart, ledger  # noqa: F401

            _ = self.capability

    def ledger(self, others: Iterable[tuple[str, MemorySlot]] = ()) -> Ledger:
        """Return what each range is promised, as of the last `plug`. Raises `KvmError`.

        *others* has name and slot of memory that devices of the board have mapped.
        """
        from vmm.coherence.ledger import Entry, Ledger
        from vmm.coherence.policy import DAX, MANAGED, Map, Promise, Stage2, decide_ram

        on_dax = {file.base for file in self.pmems if file.is_dax}

        def promise(*, write_back: bool) -> Promise:
            decision = decide_ram(self.capability, write_back=write_back)
            assert isinstance(decision, Map)
            return decision.promise

        ram, plain = promise(write_back=self._config.write_back), promise(write_back=False)
        if self._profile and self._profile.ram_bits:
            names = " ".join(self._profile.ram_flags)
            ram = Promise(Stage2.UNPROMISED, f"nobody tells what {names} does to stage 2")
        ordinary = [
            Entry(
                "pmem" if region.backing is Backing.FILE else "RAM",
                region.base,
                region.size,
                region.backing,
                DAX if region.base in on_dax else MANAGED,
                ram,
                number,
                self._flags(region),
            )
            for number, region in enumerate(self.memory)
        ]
        chips = [
            Entry(
                name,
                slot.guest_phys_addr,
                slot.memory_size,
                Backing.FILE,
                MANAGED,
                plain,
                slot.number,
                slot.flags,
            )
            for name, slot in others
        ]
        device = [entry for region in self._devices for entry in region.entries]
        shown = [
            entry for bar in self._bars for entry in bar.entries if entry.slot is not None
        ]  # a BAR without a slot has no addresses
        return Ledger([*ordinary, *chips, *device, *shown])

    def explain_fault(self, error: KvmError) -> HostError:
        """Return *error*, an EFAULT of KVM_RUN, with the range that may have caused it, and why.

        To be called in the loop's thread, where ranges come and go.
        """
        regions = (*self._devices, *self._bars)
        if loss := next(filter(None, (file.loss() for file in self.pmems)), None):
            return loss
        if not regions:
            return error
        from vmm.coherence.explain import run_causes

        found = run_causes(suspect for region in regions for suspect in region.suspects())
        if not found:
            return error
        entry, cause = found[0]
        certainty = "" if cause.certain else "probably "
        return HostError(
            f"{error.message}: {entry.name} at IPA {entry.addresses}, slot "
            f"{entry.slot}: {certainty}{cause.what}",
            cause.remedy,
        )

    def discard(self) -> None:
        """Zero RAM, as after power-on. No VM may map it."""
        self._mapping.discard()

    def close(self) -> None:
        """Unmap everything. No VM may map it. Idempotent."""
        self._owned.close()
