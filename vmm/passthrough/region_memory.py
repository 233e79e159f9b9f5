"""Device memory in guest physical space: one VFIO region, mapped as the policy decides.

    measure the mapping (vmm.coherence.stage1)
      `-> decide (vmm.coherence.policy) --> map:    a memory slot for each area that can be mapped
                                        |-> trap:   VFIO reads and writes for each access
                                        `-> refuse: an error, before the guest has any slot

What of a region has no slot is trapped, so a region may have parts that cannot be mapped.
"""

from __future__ import annotations

import errno
import mmap
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from vmm.address_range import AddressRange
from vmm.closeable import Closeable
from vmm.coherence import explain, stage1, vma
from vmm.coherence.bisect import bisect
from vmm.coherence.capability import Generation
from vmm.coherence.ledger import Entry
from vmm.coherence.policy import (
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
from vmm.coherence.prove import prove
from vmm.coherence.scratch import PLAIN, RANGE, Features
from vmm.coherence.verdict import MemoryType, Verdict
from vmm.errors import HostError, UserError, VmmError
from vmm.kvm.fd import KvmError
from vmm.kvm.ioctls import Ioctl
from vmm.kvm.vm import MemFlag
from vmm.memory import Backing
from vmm.vfio.device import open_device
from vmm.vfio.irq import IrqIndex
from vmm.vfio.trap import TrappedRegion

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm.cause import Cause
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
    Stage2.FORCED_WRITE_BACK: {MemoryType.FORCED_WRITE_BACK},
    Stage2.NON_CACHEABLE: {MemoryType.NON_CACHEABLE, MemoryType.DEVICE},
}
"""By promise, the verdicts that keep it. Other values promise nothing."""


class RegionContents:
    """A region's bytes by read and write, past stage 2: for `vmm.coherence.verdict`."""

    def __init__(self, region: VfioRegion, offset: int) -> None:
        self._region = region
        self._offset = offset

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes. Raises `VfioError`."""
        return self._region.read_bytes(self._offset + offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Write *data*. Raises `VfioError`."""
        self._region.write_bytes(self._offset + offset, data)


class RegionMemory(Closeable):
    """One region of one device, at *base* in the guest once it is placed. `with` closes it.

    *holes* are parts that get no mapping, because each access to them must be trapped. *whole*: the
    device is passed whole (``--vfio``), with all its regions. So ``cache=require`` is about those
    that can be cacheable, and as others may hold registers with side effects on reads, the verdict
    "undecidable" breaks no promise.

    Raises `HostError` if the policy refuses, `UserError` if the device has no such region or the
    option cannot apply to it; nothing is mapped then.
    """

    def __init__(  # noqa: PLR0913  (all but the first four have defaults)
        self,
        config: BarConfig,
        device: VfioDevice,
        system: System,
        capability: HostCapability,
        *,
        holes: Sequence[AddressRange] = (),
        whole: bool = False,
    ) -> None:
        self.config = config
        self.name = f"{device.bdf} region {config.region}"
        self._option = f"{'--vfio' if whole else '--bar'} {self.name}"
        self._whole_device = whole
        self.base = 0
        self.device = device
        self._system = system
        self._capability = capability
        self._mappings: list[RegionMapping] = []
        self.entries: list[Entry] = []
        """Its part of the ledger."""
        self._trapped: TrappedRegion | None = None
        self._owned = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            self.region = device.region(config.region)
            if not self.region.size:
                raise UserError(f"{self._option}: the device has no such region")
            self.attribute = region_attribute(device.function.driver or "", config.region)
            device.enable_memory()
            self._map(holes)
            self.attribute = stage1.measure(self.attribute, system, self._areas, capability)
            self.decision = self._decide(Cache(config.cache))
            undo.pop_all()

    @property
    def size(self) -> int:
        """Bytes."""
        return self.region.size

    @property
    def alignment(self) -> int:
        """Alignment of its guest address, in bytes, that allows large blocks at stage 2."""
        return max(LEAST_ALIGNMENT, 1 << (self.size - 1).bit_length())

    @property
    def can_be_cacheable(self) -> bool:
        """Whether its driver may map it cacheable at host stage 1."""
        return self.attribute.stage1 is not Stage1.UNCACHED

    @property
    def coherent(self) -> list[AddressRange]:
        """The parts, as offsets, that guests may use as ordinary, cacheable memory."""
        if isinstance(self.decision, Map) and (
            self.decision.promise.stage2 is Stage2.FORCED_WRITE_BACK
        ):
            return [mapping.area for mapping in self._mappings]
        return []

    # --- map and decide -------------------------------------------------------------------------

    def _map(self, holes: Iterable[AddressRange]) -> None:
        for area in without(self.region.info.areas, holes):
            self._mappings.append(self._owned.enter_context(self.region.map(*area)))

    @property
    def _areas(self) -> list[stage1.Area]:
        return [stage1.Area(*mapping.area, mapping.host_address) for mapping in self._mappings]

    def _decide(self, cache: Cache) -> Map | Trap:
        if self._whole_device and cache is Cache.REQUIRE and not self.can_be_cacheable:
            cache = Cache.AUTO
        decision = decide(self.attribute, self._capability, cache)
        if isinstance(decision, Refuse):
            kind = HostError if self.can_be_cacheable else UserError
            raise kind(f"{self._option}: {decision.because}", decision.remedy)
        if isinstance(decision, Trap):
            self.close()
            return decision
        if not self.region.info.areas:
            self.region.check_map()
        self._check_flag(decision)
        if self._capability.generation is Generation.VENDOR and self.can_be_cacheable:
            self._experiment(decision)
        return decision

    def _experiment(self, decision: Map) -> None:
        """Raise `HostError` unless a scratch guest proves each mapping forced Write-Back."""
        for mapping in self._mappings:
            verdict = self._prove(mapping, decision.flags, PLAIN)
            if verdict.memory_type is not MemoryType.FORCED_WRITE_BACK:
                raise HostError(
                    f"{self._option}: --uapi vendor: this kernel does not map it Write-Back at "
                    f"stage 2: {verdict}",
                    "leave --uapi out, or use cache=forbid to trap each access",
                )

    def _check_flag(self, chosen: Map) -> None:
        """Check that flag bit 3 is the proposal's, even if ``--uapi`` says so.

        A kernel with the proposal refuses cacheable memory without the flag. A kernel where bit 3
        means something else, as in some out-of-tree patches, maps such memory as Device, with the
        flag or without. Raises `HostError`.
        """
        flagged = MemFlag.WRITE_BACK in chosen.flags and self._accepts(chosen.flags)
        if flagged and self._accepts(MemFlag(0)):
            raise HostError(
                f"{self._option}: this kernel takes it with memory-slot flag bit 3 and without, "
                "so the bit is not KVM_MEM_ENABLE_CACHEABLE_PFNMAP here, and promises nothing",
                "leave --uapi out, or use cache=forbid to trap each access",
            )

    def _accepts(self, flags: MemFlag) -> bool:
        return stage1.accepts(self._system, self._areas, flags)

    def place(self, base: int) -> None:
        """Set its guest physical address. It must have no slots."""
        self.base = base

    # --- prove ----------------------------------------------------------------------------------

    def verify(self, features: Features = PLAIN) -> list[Verdict]:
        """Prove on a scratch VM what stage 2 gives each mapped area. Leaves its memory enabled.

        *features* are the guest's. Raises `HostError`, explained, if the slot is refused, or if no
        guest can have them.
        """
        if not isinstance(self.decision, Map):
            return []
        self.device.enable_memory()
        return [self._prove(mapping, self.decision.flags, features) for mapping in self._mappings]

    def _prove(self, mapping: RegionMapping, flags: MemFlag, features: Features) -> Verdict:
        try:
            return prove(
                self._system,
                mapping.host_address,
                mapping.size,
                flags=int(flags),
                contents=RegionContents(self.region, mapping.area.base)
                if self.attribute.may_be_written
                else None,
                features=features,
            )
        except KvmError as error:
            if features.mte and error.errno == errno.EINVAL:
                raise HostError(
                    f"{self._option}: the slot is refused with EINVAL: a VM with memory tagging "
                    "takes no memory that cannot have tags, and device memory cannot",
                    "leave --guest-has mte out to see what a guest without tags gets",
                ) from error
            raise self._refused(RANGE, mapping, int(flags), error) from error

    def check(self, verdict: Verdict) -> None:
        """Raise `HostError` if *verdict* breaks what was promised."""
        if not isinstance(self.decision, Map):
            return
        promise = self.decision.promise
        undecided = verdict.memory_type is MemoryType.UNDECIDABLE
        if undecided and self._whole_device and promise.stage2 is Stage2.NON_CACHEABLE:
            return
        if verdict.memory_type not in EXPECTED.get(promise.stage2, MemoryType):
            raise HostError(
                f"--verify: {self.name}: stage 2 was to be {promise.stage2.value} "
                f"({promise.because}), but is {verdict}",
                "do not trust this kernel with this device: use cache=forbid",
            )

    # --- slots ----------------------------------------------------------------------------------

    def plug(self, slots: MemorySlots) -> None:
        """Add its memory slots at `base`, or none if it is trapped; update `entries`.

        Raises `HostError`, explained; it has no slots then.
        """
        if isinstance(self.decision, Trap):
            self.entries = [self._trapped_entry(self._whole, self.decision.because)]
            return
        entries: list[Entry] = []
        flags = int(self.decision.flags)
        for mapping in self._mappings:
            base = self.base + mapping.area.base
            try:
                slot = slots.add(base, mapping.size, mapping.host_address, flags)
            except KvmError as error:
                self._remove(slots, entries)
                raise self._refused(base, mapping, flags, error) from error
            entries.append(self._entry(mapping.area, self.decision.promise, slot.number, flags))
        because = "the driver does not have this part mapped: it is trapped"
        mapped = [mapping.area for mapping in self._mappings]
        rest = [self._trapped_entry(hole, because) for hole in without([self._whole], mapped)]
        self.entries = entries + rest

    @property
    def _whole(self) -> AddressRange:
        return AddressRange(0, self.size)

    def trap(self, events: Events) -> TrappedRegion:
        """Return the bus device that answers accesses to parts without a slot."""
        self._trapped = TrappedRegion(self.region, 0, self.size, events)
        return self._trapped

    def removal_fd(self) -> int | None:
        """Return an eventfd that is signalled when the host wants the device back, if any."""
        return self.device.notice(IrqIndex.REQ)

    def hide(self, slots: MemorySlots | None, because: str) -> None:
        """Remove its slots from a guest that may be running: accesses are trapped from now on.

        *slots* are those of the VM that it is plugged into, if any. `plug` adds them again.
        """
        if slots:
            self._remove(slots, self.entries)
        self.entries = [self._trapped_entry(self._whole, because)]

    def unplug(self, slots: MemorySlots | None, because: str) -> None:
        """Hide it for good, and unmap it: the device is about to be closed."""
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
        """Return what a failed KVM_RUN may have accessed, with the present state. Never raises."""
        if not self._mappings:
            return []
        try:
            enabled: bool | None = self.device.memory_enabled
        except VmmError:
            enabled = None
        behind = {
            self.base + mapping.area.base: vma.find(mapping.host_address)
            for mapping in self._mappings
        }
        return [
            explain.Suspect(entry, behind.get(entry.base), enabled)
            for entry in self.entries
            if entry.slot is not None
        ]

    def _refused(self, base: int, mapping: RegionMapping, flags: int, error: KvmError) -> HostError:
        """Return the error for a slot that KVM refused, with the likely causes."""
        if error.request is not Ioctl.KVM_SET_USER_MEMORY_REGION:
            return error
        asked = explain.RequestedSlot(None, flags, base, mapping.size, mapping.host_address)
        where = vma.find(mapping.host_address)
        causes = explain.slot_causes(error.errno, asked, where, self.attribute, self._capability)
        causes = self._certain(error, asked, causes)
        refusal = explain.refusal(asked, where, error.errno, causes)
        return HostError(f"{self._option}: {refusal.message}", refusal.hint)

    def _certain(
        self, error: KvmError, asked: explain.RequestedSlot, causes: list[Cause]
    ) -> list[Cause]:
        """Return *causes* with what a scratch VM tells first, where none of them is certain.

        Not for a BAR that the guest places: its vCPU's thread makes no VM.
        """
        unsure = error.errno == errno.EINVAL and not any(cause.certain for cause in causes)
        if self._whole_device or not unsure:
            return causes
        with suppress(VmmError):
            found = bisect(self._system, asked)
            return [*([found] if found is not None else []), *causes]
        return causes

    def _trapped_entry(self, area: AddressRange, because: str) -> Entry:
        return self._entry(area, Promise(Stage2.NO_SLOT, because), None, 0)

    def _entry(self, area: AddressRange, promise: Promise, slot: int | None, flags: int) -> Entry:
        return Entry(
            self.name,
            self.base + area.base,
            area.size,
            Backing.DEVICE,
            self.attribute,
            promise,
            slot,
            flags,
        )

    def close(self) -> None:
        """Unmap it. Its memory slots must be gone. Idempotent."""
        self._mappings.clear()
        self._owned.close()


def without(areas: Iterable[AddressRange], holes: Iterable[AddressRange]) -> list[AddressRange]:
    """Return *areas* without the host pages that *holes* touch."""
    page = mmap.PAGESIZE
    left = list(areas)
    for hole in holes:
        start, end = hole.base & -page, hole.end + -hole.end % page
        parts = (
            (first, last)
            for area in left
            for first, last in (
                (area.base, min(area.end, start)),
                (max(area.base, end), area.end),
            )
        )
        left = [AddressRange.to(first, last) for first, last in parts if first < last]
    return left


def open_all(
    configs: Iterable[BarConfig],
    system: System,
    capability: HostCapability,
    owned: ExitStack,
    above: int,
) -> list[RegionMemory]:
    """Open the devices, and decide, map and place their regions; *owned* closes them.

    Regions without an address are placed from guest physical address *above* on. Raises
    `HostError` or `UserError`.
    """
    devices: dict[str, VfioDevice] = {}
    regions = []
    for config in configs:
        if config.bdf not in devices:
            devices[config.bdf] = owned.enter_context(open_device(config.bdf))
        region = owned.enter_context(RegionMemory(config, devices[config.bdf], system, capability))
        free = -(-above // region.alignment) * region.alignment
        region.place(free if config.base is None else config.base)
        above = max(above, region.base + region.size)
        regions.append(region)
    return regions
