"""Virtqueues, split and packed, over cdefs/ring.c (VIRTIO 1.2, 2.6 to 2.8).

    driver makes chains available --> Queue.pop --> the device reads and writes their buffers
    driver takes used chains      <-- Queue.push <--

The C checks all that the guest writes; what it finds wrong comes out as `RingError`, after which
the queue is broken until the driver resets it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm._native import ffi, lib
from vmm.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer

    from vmm.memory import GuestMemory

MAX_SIZE: Final = 32768
"""Descriptors in a queue (2.7, 2.8)."""

CHAIN_SEGMENTS: Final = 1024
"""Buffers in a chain: as many as preadv and pwritev take (IOV_MAX)."""

PACKED_IDS: Final = 1 << 16

WRONG: Final = {
    lib.PYVMM_RING_SIZE: "a queue cannot have that size",
    lib.PYVMM_RING_ALIGNMENT: "the ring is not aligned as it must be",
    lib.PYVMM_RING_ADDRESS: "an address or length reaches beyond guest memory",
    lib.PYVMM_RING_INDEX: "more is made available than the ring holds",
    lib.PYVMM_RING_DESCRIPTOR: "a descriptor's number is beyond its table",
    lib.PYVMM_RING_LOOP: "a chain is longer than its table: it loops",
    lib.PYVMM_RING_EMPTY: "a buffer has no bytes",
    lib.PYVMM_RING_ORDER: "a device-readable buffer comes after a device-writable one",
    lib.PYVMM_RING_INDIRECT: "an indirect table is not negotiated, or not the end of its chain",
    lib.PYVMM_RING_NESTED: "an indirect table is in an indirect table",
    lib.PYVMM_RING_TABLE: "an indirect table's length is no whole number of descriptors",
    lib.PYVMM_RING_REUSED: "a chain is made available again before it was used",
    lib.PYVMM_RING_SEGMENTS: f"a chain has more than {CHAIN_SEGMENTS} buffers",
    lib.PYVMM_RING_LENGTH: "a chain has more than 4 GiB",
    lib.PYVMM_RING_REQUEST: "a chain is too short for a request",
}


class RingError(GuestError):
    """The driver made a ring that no driver may make. *code* is one of PYVMM_RING_*."""

    def __init__(self, code: int) -> None:
        super().__init__(WRONG[code])
        self.code = code


class MemoryMap:
    """Guest memory as the C knows it: numbers only, so *memory* must outlive its queues."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        regions = list(memory)
        self._ranges = ffi.new("struct pyvmm_range[]", max(len(regions), 1))
        for entry, region in zip(self._ranges, regions, strict=False):
            entry.base, entry.size = region.base, region.size
            entry.host = ffi.cast("uint8_t *", region.host_address)
        self.c: Any = ffi.new(
            "struct pyvmm_memory *", {"count": len(regions), "ranges": self._ranges}
        )


class Format(NamedTuple):
    """What driver and device have agreed upon for all of a device's queues."""

    packed: bool = False
    event_idx: bool = False
    indirect: bool = False


class Areas(NamedTuple):
    """Addresses of a queue's three areas (2.6): guest physical ones, unless it is said which."""

    descriptors: int
    driver: int
    device: int


class Segment(NamedTuple):
    """One buffer of a chain: *length* bytes at guest physical *address*, ours at *host*."""

    address: int
    length: int
    writable: bool
    host: int


class Chain:
    """Buffers that the driver made available together. Those that are to be read come first.

    `Queue.pop` fills it in; it is good until the next one does, unless that was given another.
    """

    def __init__(self, segments: int = CHAIN_SEGMENTS) -> None:
        self._segments = ffi.new("struct iovec[]", segments)
        self._addresses = ffi.new("uint64_t[]", segments)
        self.c: Any = ffi.new(
            "struct pyvmm_chain *",
            {"capacity": segments, "segments": self._segments, "addresses": self._addresses},
        )

    @property
    def id(self) -> int:
        """What `Queue.push` wants to know of it."""
        return int(self.c.id)

    @property
    def readable(self) -> int:
        """How many bytes the device may read."""
        return int(self.c.readable_bytes)

    @property
    def writable(self) -> int:
        """How many bytes the device may write."""
        return int(self.c.writable_bytes)

    def __iter__(self) -> Iterator[Segment]:
        for index in range(self.c.readable + self.c.writable):
            segment = self._segments[index]
            yield Segment(
                self._addresses[index],
                segment.iov_len,
                index >= self.c.readable,
                int(ffi.cast("uintptr_t", segment.iov_base)),
            )

    def read(self, size: int, offset: int = 0) -> bytes:
        """Return up to *size* bytes of what the device may read, from *offset* on."""
        size = max(0, min(size, self.readable - offset))
        data = bytearray(size)
        with ffi.from_buffer("uint8_t[]", data, require_writable=True) as target:
            lib.pyvmm_chain_read(self.c, offset, target, size)
        return bytes(data)

    def write(self, data: ReadableBuffer, offset: int = 0) -> int:
        """Copy *data* to what the device may write; return how many bytes had room."""
        with ffi.from_buffer("uint8_t[]", data) as origin:
            return int(lib.pyvmm_chain_write(self.c, offset, origin, len(origin)))

    def fill_random(self, most: int) -> int:
        """Fill up to *most* bytes with random ones; return how many. Raises OSError."""
        done = int(lib.pyvmm_chain_fill_random(self.c, most))
        if done < 0:
            raise OSError(-done, "getrandom")
        return done


class Queue:
    """One live virtqueue. One thread at a time may use it.

    Raises `RingError` if *size* and *areas* are no place for a ring of that *form*.
    """

    def __init__(self, memory: MemoryMap, size: int, areas: Areas, form: Format) -> None:
        if not 0 < size <= MAX_SIZE:
            raise RingError(lib.PYVMM_RING_SIZE)
        ids = PACKED_IDS if form.packed else size
        self._keep = memory, ffi.new("uint16_t[]", ids)
        self._chain = Chain()
        self.size = size
        self.c: Any = ffi.new(
            "struct pyvmm_queue *",
            {
                "memory": memory.c,
                "taken": self._keep[1],
                "taken_count": ids,
                "size": size,
                "packed": form.packed,
                "event_idx": form.event_idx,
                "indirect": form.indirect,
            },
        )
        if wrong := lib.pyvmm_queue_configure(self.c, *areas):
            raise RingError(wrong)

    @property
    def host_areas(self) -> Areas:
        """Where its areas are in our own address space: checked to be guest memory, as a whole."""
        return Areas(
            *(
                int(ffi.cast("uintptr_t", area))
                for area in (self.c.descriptors, self.c.driver, self.c.device)
            )
        )

    def pop(self, chain: Chain | None = None) -> Chain | None:
        """Return the next chain the driver made available, in *chain* if given; None: no more.

        Raises `RingError`.
        """
        if chain is None:
            chain = self._chain
        result = lib.pyvmm_queue_pop(self.c, chain.c)
        if result < 0:
            raise RingError(result)
        return chain if result else None

    def push(self, chain_id: int, length: int) -> None:
        """Give a chain back, the first *length* of its writable bytes written.

        Raises ValueError if the device does not have it.
        """
        if lib.pyvmm_queue_push(self.c, chain_id, length):
            raise ValueError(f"chain {chain_id} is not with the device")

    @property
    def next_available(self) -> int:
        """The index of the available ring that `pop` is at; of a split one."""
        return int(self.c.next_avail)

    def resume(self, index: int) -> None:
        """Go on where somebody else left off, who has used *index* chains and has no other.

        Of a split ring that has not been used here.
        """
        assert not self.c.packed, "its indices are others"
        self.c.next_avail = self.c.next_used = index
        self.c.in_flight = 0
        ffi.memmove(self._keep[1], bytes(2 * self.size), 2 * self.size)

    def put_back(self, chain: Chain) -> None:
        """Undo `pop`, which was the last thing to happen to the queue; a split one."""
        assert not self.c.packed, "its indices are others"
        self.c.next_avail = (self.c.next_avail - 1) & 0xFFFF
        self.c.in_flight -= 1
        self._keep[1][chain.id] = 0

    def batch(self, most: int) -> Iterator[Chain]:
        """Pop up to *most* chains, each good until the next, with notifications off.

        `enable_notify` has to follow. Raises `RingError`.
        """
        lib.pyvmm_queue_disable_notify(self.c)
        while most > 0 and (chain := self.pop()) is not None:
            most -= 1
            yield chain

    def enable_notify(self) -> bool:
        """Ask to be notified of the next chain. True: one is there already; perhaps unnotified."""
        return bool(lib.pyvmm_queue_enable_notify(self.c))

    def should_interrupt(self) -> bool:
        """Tell whether the driver wants to hear of what was pushed since this was asked last."""
        return bool(lib.pyvmm_queue_should_interrupt(self.c))
