"""Device memory in the guest's physical space: one VFIO region, as the policy says.

    decide (vmm.coherence.policy) --> mapped: a memory slot for each area that can be mapped
                                  `-> trapped: VFIO read and write for each access
                                  `-> refused: before any slot exists

Whatever of a region has no slot is trapped, so a region with holes in what can be mapped works.
"""

from __future__ import annotations

import errno
import mmap
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmm.address_range import AddressRange
from vmm.closeable import Closeable
from vmm.coherence import explain, vma
from vmm.coherence.ledger import Entry
from vmm.coherence.policy import (
    AskKernel,
    Cache,
    Map,
    Promise,
    Refuse,
    Stage1,
    Stage2,
    Trap,
    decide,
    region_attribute,
)
from vmm.coherence.scratch import RANGE
from vmm.coherence.verdict import MemoryType, Verdict, prove
from vmm.errors import HostError, UserError, VmmError
from vmm.kvm.fd import KvmError
from vmm.kvm.ioctls import Ioctl
from vmm.kvm.vm import MemFlag
from vmm.memory import Backing
from vmm.vfio.device import open_device
from vmm.vfio.irq import IrqIndex
from vmm.vfio.trap import TrappedRegion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm.coherence.capability import HostCapability
    from vmm.config.bar import BarConfig
    from vmm.events import Events
    from vmm.kvm.slots import MemorySlots
    from vmm.kvm.system import System
    from vmm.vfio.device import VfioDevice
    from vmm.vfio.mapping import RegionMapping
    from vmm.vfio.region import VfioRegion

LEAST_ALIGNMENT = 2 << 20

EXPECTED = {
    Stage2.WRITE_BACK: {MemoryType.WRITE_BACK},
    Stage2.NON_CACHEABLE: {MemoryType.NON_CACHEABLE, MemoryType.DEVICE},
}
"""What a verdict must be for a promise to have been kept. Others promise nothing."""


class RegionContents:
    """A region's bytes, around stage 2: for `vmm.coherence.verdict`."""

    def __init__(self, region: VfioRegion, offset: int) -> None:
        self._region = region
        self._offset = offset

    def read(self, offset: int, size: int) -> bytes:
        """Return what is there."""
        return self._region.read_bytes(self._offset + offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Put it there."""
        self._region.write_bytes(self._offset + offset, data)


class RegionMemory(Closeable):
    """One region of one device, at *base* in the guest. Use as a context manager.

    *holes* are parts that get no mapping: who needs to see each access has them trapped. *option*
    is what errors call it by. *registers*: it may be some that mind how they are read, so that an
    undecided verdict breaks no promise.

    Raises `HostError` if the policy refuses, `UserError` for what cannot be, before anything is
    mapped.
    """

    def __init__(  # noqa: PLR0913  (all but the first four have defaults)
        self,
        config: BarConfig,
        device: VfioDevice,
        system: System,
        capability: HostCapability,
        *,
        holes: Sequence[AddressRange] = (),
        option: str = "--bar",
        registers: bool = False,
    ) -> None:
        self.config = config
        self.name = f"{device.bdf} region {config.region}"
        self._option = f"{option} {self.name}"
        self._keep_out = holes
        self._may_be_registers = registers
        self.base = 0
        self.device = device
        self._system = system
        self._capability = capability
        self._mappings: list[RegionMapping] = []
        self.entries: list[Entry] = []
        self._trapped: TrappedRegion | None = None
        self._owned = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            self.region = device.region(config.region)
            if not self.region.size:
                raise UserError(f"{self._option}: the device has no such region")
            self.attribute = region_attribute(device.function.driver or "", config.region)
            self.decision = self._decide(Cache(config.cache))
            undo.pop_all()

    @property
    def size(self) -> int:
        """Bytes."""
        return self.region.size

    @property
    def alignment(self) -> int:
        """What its guest address should be a multiple of, for large blocks at stage 2."""
        return max(LEAST_ALIGNMENT, 1 << (self.size - 1).bit_length())

    @property
    def coherent(self) -> list[AddressRange]:
        """The parts that guests may use as ordinary, cacheable memory."""
        if isinstance(self.decision, Map) and self.decision.promise.stage2 is Stage2.WRITE_BACK:
            return [AddressRange(mapping.offset, mapping.size) for mapping in self._mappings]
        return []

    # --- before there are slots ---------------------------------------------------------------

    def _decide(self, cache: Cache) -> Map | Trap:
        decision = decide(self.attribute, self._capability, cache)
        if isinstance(decision, Refuse):
            kind = UserError if self.attribute.stage1 is Stage1.UNCACHED else HostError
            raise kind(f"{self._option}: {decision.because}", decision.remedy)
        self.device.enable_memory()
        if isinstance(decision, Trap):
            return decision
        for area in without(self.region.info.areas or (self.region.check_map(),), self._keep_out):
            mapping = self.region.map(area.base, area.size)
            self._owned.callback(mapping.close)
            self._mappings.append(mapping)
        chosen = self._ask(decision) if isinstance(decision, AskKernel) else decision
        self._check_flag(chosen)
        return chosen

    def _ask(self, question: AskKernel) -> Map:
        """Let the kernel say which choice is the right one."""
        for choice in question.choices:
            if self._accepts(choice.flags):
                return choice
        tried = " nor ".join("with it" if one.flags else "without" for one in question.choices)
        raise HostError(
            f"{self._option}: the kernel, asked about the Write-Back flag, takes it not {tried}",
            "use cache=forbid to trap each access",
        )

    def _check_flag(self, chosen: Map) -> None:
        """Have the kernel prove that flag bit 3 is the proposal's, whoever says so.

        Where it is, cacheable memory without it is refused. Where it means something else, as it
        does out of tree, the kernel maps such memory as Device, flag or no flag.
        """
        flagged = MemFlag.WRITE_BACK in chosen.flags and self._accepts(chosen.flags)
        if flagged and self._accepts(MemFlag(0)):
            raise HostError(
                f"{self._option}: this kernel takes it with memory-slot flag bit 3 and without, "
                "so the bit is not KVM_MEM_ENABLE_CACHEABLE_PFNMAP here, and promises nothing",
                "leave --uapi out, or use cache=forbid to trap each access",
            )

    def _accepts(self, flags: MemFlag) -> bool:
        """Tell whether a scratch VM gets slots with *flags*. It has no vCPU: nothing is mapped."""
        with self._system.create_vm(self.size) as vm:
            for number, mapping in enumerate(self._mappings):
                where = (mapping.offset, mapping.size, mapping.host_address)
                try:
                    vm.set_user_memory_region(number, int(flags), *where)
                except KvmError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    return False
        return True

    def verify(self) -> list[Verdict]:
        """Prove on a scratch VM what stage 2 gives each mapped area; its memory is on then.

        Raises `HostError`, explained, if the slot is refused.
        """
        if not isinstance(self.decision, Map):
            return []
        self.device.enable_memory()
        return [self._prove(mapping, self.decision.flags) for mapping in self._mappings]

    def _prove(self, mapping: RegionMapping, flags: MemFlag) -> Verdict:
        memory = self.attribute.stage1 is Stage1.CACHEABLE
        try:
            return prove(
                self._system,
                mapping.host_address,
                mapping.size,
                flags=int(flags),
                contents=RegionContents(self.region, mapping.offset) if memory else None,
            )
        except KvmError as error:
            raise self._refused(RANGE, mapping, int(flags), error) from error

    def check(self, verdict: Verdict) -> None:
        """Raise `HostError` if *verdict* breaks what was promised."""
        if not isinstance(self.decision, Map):
            return
        promise = self.decision.promise
        undecided = verdict.memory_type is MemoryType.UNDECIDABLE
        if undecided and self._may_be_registers and promise.stage2 is Stage2.NON_CACHEABLE:
            return
        if verdict.memory_type not in EXPECTED.get(promise.stage2, MemoryType):
            raise HostError(
                f"--verify: {self.name}: stage 2 was to be {promise.stage2.value} "
                f"({promise.because}), but is {verdict}",
                "do not trust this kernel with this device: use cache=forbid",
            )

    # --- plugged into a machine -----------------------------------------------------------------

    def plug(self, slots: MemorySlots) -> None:
        """Show it to the guest; `entries` is then its part of the ledger.

        Raises `HostError`, explained.
        """
        if isinstance(self.decision, Trap):
            promise = Promise(Stage2.NO_SLOT, self.decision.because)
            self.entries = [self._entry(0, self.size, promise, None, 0)]
            return
        entries: list[Entry] = []
        flags = int(self.decision.flags)
        for mapping in self._mappings:
            base = self.base + mapping.offset
            try:
                slot = slots.add(base, mapping.size, mapping.host_address, flags)
            except KvmError as error:
                self._remove(slots, entries)
                raise self._refused(base, mapping, flags, error) from error
            entries.append(
                self._entry(mapping.offset, mapping.size, self.decision.promise, slot.number, flags)
            )
        rest = Promise(Stage2.NO_SLOT, "the driver does not have this part mapped: it is trapped")
        self.entries = entries + [self._entry(*hole, rest, None, 0) for hole in self._holes()]

    def _holes(self) -> Iterator[AddressRange]:
        """Yield the parts of the region that have no mapping."""
        at = 0
        for mapping in self._mappings:
            if at < mapping.offset:
                yield AddressRange(at, mapping.offset - at)
            at = mapping.offset + mapping.size
        if at < self.size:
            yield AddressRange(at, self.size - at)

    def trap(self, events: Events) -> TrappedRegion:
        """Return the bus device that answers accesses to what has no slot."""
        self._trapped = TrappedRegion(self.region, 0, self.size, events)
        return self._trapped

    def removal_fd(self) -> int | None:
        """Return an eventfd that tells when the host wants the device back."""
        return self.device.notice(IrqIndex.REQ)

    def hide(self, slots: MemorySlots | None, because: str) -> None:
        """Take its slots from a guest that may be running: accesses are trapped from now on.

        *slots* are those of the VM it is plugged into, if any. `plug` shows it again.
        """
        if slots:
            self._remove(slots, self.entries)
        self.entries = [self._entry(0, self.size, Promise(Stage2.NO_SLOT, because), None, 0)]

    def unplug(self, slots: MemorySlots | None, because: str) -> None:
        """Hide it, and for good: nothing of it is mapped any more."""
        self.hide(slots, because)
        self.decision = Trap(because)
        if self._trapped is not None:
            self._trapped.detach()
        self.close()

    @staticmethod
    def _remove(slots: MemorySlots, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.slot is not None and (slot := slots.find(entry.base)):
                slots.remove(slot)

    def suspects(self) -> list[explain.Suspect]:
        """Return what a vCPU may have failed on, as it is now. Raises nothing: it is bad enough."""
        if not self._mappings:
            return []
        try:
            enabled: bool | None = self.device.memory_enabled
        except VmmError:
            enabled = None
        behind = {
            self.base + mapping.offset: vma.find(mapping.host_address) for mapping in self._mappings
        }
        return [
            explain.Suspect(entry, behind.get(entry.base), enabled)
            for entry in self.entries
            if entry.slot is not None
        ]

    def _refused(self, base: int, mapping: RegionMapping, flags: int, error: KvmError) -> HostError:
        if error.request is not Ioctl.KVM_SET_USER_MEMORY_REGION:
            return error
        asked = explain.RequestedSlot(None, flags, base, mapping.size, mapping.host_address)
        where = vma.find(mapping.host_address)
        causes = explain.slot_causes(
            error.errno, asked, where, self.attribute.stage1, self._capability
        )
        refusal = explain.refusal(asked, where, error.errno, causes)
        return HostError(f"{self._option}: {refusal.message}", refusal.hint)

    def _entry(
        self, offset: int, size: int, promise: Promise, slot: int | None, flags: int
    ) -> Entry:
        return Entry(
            self.name,
            self.base + offset,
            size,
            Backing.DEVICE,
            self.attribute,
            promise,
            slot,
            flags,
        )

    def close(self) -> None:
        """Unmap. Its memory slots must be gone. Idempotent."""
        self._mappings.clear()
        self._owned.close()


def without(areas: Iterable[AddressRange], holes: Iterable[AddressRange]) -> list[AddressRange]:
    """Return *areas* less each host page that has something of *holes*."""
    page = mmap.PAGESIZE
    left = list(areas)
    for hole in holes:
        start, end = hole.base & -page, hole.end + -hole.end % page
        parts = [
            (first, last)
            for area in left
            for first, last in (
                (area.base, min(area.end, start)),
                (max(area.base, end), area.end),
            )
        ]
        left = [AddressRange(first, last - first) for first, last in parts if first < last]
    return left


def open_all(
    configs: tuple[BarConfig, ...],
    system: System,
    capability: HostCapability,
    owned: ExitStack,
    above: int,
) -> list[RegionMemory]:
    """Open the devices and place their regions, from *above* on where no address is given.

    What is opened belongs to *owned*. Raises `HostError` or `UserError`.
    """
    devices: dict[str, VfioDevice] = {}
    regions = []
    for config in configs:
        if config.bdf not in devices:
            devices[config.bdf] = owned.enter_context(open_device(config.bdf))
        region = owned.enter_context(RegionMemory(config, devices[config.bdf], system, capability))
        region.base = (
            -(-above // region.alignment) * region.alignment if config.base is None else config.base
        )
        above = max(above, region.base + region.size)
        regions.append(region)
    return regions
