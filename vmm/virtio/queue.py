"""Virtqueues, split and packed, over cdefs/ring.c (VIRTIO 1.2, 2.6 to 2.8).

    driver makes chains available --> Queue.pop --> the device reads and writes their buffers
    driver takes used chains      <-- Queue.push <--

The C checks everything that the guest writes. A violation is raised as `RingError`; the queue is
broken from then on, until the driver resets it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm._native import ffi, lib
from vmm.errors import GuestError
from vmm.virtio.state import RingState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer

    from vmm.memory import GuestMemory

MAX_SIZE: Final = 32768
"""Descriptors in a queue, at most (2.7, 2.8)."""

CHAIN_SEGMENTS: Final = 1024
"""Buffers in a chain, at most: as many as preadv(2) and pwritev(2) take (IOV_MAX)."""

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
    """The driver violated the rules of a ring. *code* is one of PYVMM_RING_*."""

    def __init__(self, code: int) -> None:
        super().__init__(WRONG[code])
        self.code = code


class MemoryMap:
    """Guest memory as C sees it. C has numbers only, so *memory* must outlive the queues."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        regions = list(memory)
        self._ranges = ffi.new("struct pyvmm_range[]", max(len(regions), 1))
        for entry, region in zip(self._ranges, regions, strict=False):
            entry.base, entry.size = region.base, region.size
            entry.host = ffi.cast("uint8_t *", region.host_address)
        self.c: Any = ffi.new(
            "struct pyvmm_memory *",
            {"count": len(regions), "ranges": self._ranges, "dirty": memory.dirty.c},
        )


class Format(NamedTuple):
    """The negotiated ring features, which apply to all of a device's queues."""

    packed: bool = False
    event_idx: bool = False
    indirect: bool = False


class Areas(NamedTuple):
    """Addresses of a queue's three areas (2.6); guest physical unless stated otherwise."""

    descriptors: int
    driver: int
    device: int


class Segment(NamedTuple):
    """One buffer of a chain: *length* bytes at guest physical *address*, mapped at *host*."""

    address: int
    length: int
    writable: bool
    host: int


class Chain:
    """Buffers that the driver made available together; device-readable ones come first (2.7.4.2).

    `Queue.pop` fills a chain. It is valid until the same chain is filled again.
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
        """The number by which `Queue.push` knows the chain."""
        return int(self.c.id)

    @property
    def readable(self) -> int:
        """Bytes that the device may read."""
        return int(self.c.readable_bytes)

    @property
    def writable(self) -> int:
        """Bytes that the device may write."""
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
        """Return up to *size* device-readable bytes, from *offset* on."""
        size = max(0, min(size, self.readable - offset))
        data = bytearray(size)
        with ffi.from_buffer("uint8_t[]", data, require_writable=True) as target:
            lib.pyvmm_chain_read(self.c, offset, target, size)
        return bytes(data)

    def write(self, data: ReadableBuffer, offset: int = 0) -> int:
        """Copy *data* to the device-writable buffers; return how many bytes had room."""
        with ffi.from_buffer("uint8_t[]", data) as origin:
            return int(lib.pyvmm_chain_write(self.c, offset, origin, len(origin)))

    def fill_random(self, most: int) -> int:
        """Fill up to *most* device-writable bytes by getrandom(2); return how many.

        Raises OSError.
        """
        done = int(lib.pyvmm_chain_fill_random(self.c, most))
        if done < 0:
            raise OSError(-done, "getrandom")
        return done


class Queue:
    """One live virtqueue. One thread at a time may use it.

    Raises `RingError` if no ring of that *form* can have *size* descriptors and these *areas*.
    """

    def __init__(self, memory: MemoryMap, size: int, areas: Areas, form: Format) -> None:
        if not 0 < size <= MAX_SIZE:
            raise RingError(lib.PYVMM_RING_SIZE)
        ids = PACKED_IDS if form.packed else size
        self._keep = memory, ffi.new("uint16_t[]", ids)
        self._chain = Chain()
        self.size = size
        self.ids = ids
        """How many numbers a chain may have: `Chain.id` is below it."""
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
        """The areas' addresses in this process; each area as a whole is guest memory."""
        return Areas(
            *(
                int(ffi.cast("uintptr_t", area))
                for area in (self.c.descriptors, self.c.driver, self.c.device)
            )
        )

    def pop(self, chain: Chain | None = None) -> Chain | None:
        """Return the next available chain, filled into *chain* if given; None if there is none.

        Raises `RingError`.
        """
        if chain is None:
            chain = self._chain
        result = lib.pyvmm_queue_pop(self.c, chain.c)
        if result < 0:
            raise RingError(result)
        return chain if result else None

    def push(self, chain_id: int, length: int) -> None:
        """Return a chain to the driver as used, with its first *length* writable bytes written.

        Raises ValueError if the chain is not with the device.
        """
        if lib.pyvmm_queue_push(self.c, chain_id, length):
            raise ValueError(f"chain {chain_id} is not with the device")

    @property
    def next_available(self) -> int:
        """The index in the available ring that `pop` is at; split rings only."""
        return int(self.c.next_avail)

    def resume(self, index: int) -> None:
        """Continue where another server stopped: *index* chains are used, and none is in flight.

        Split rings only, before the first `pop`.
        """
        assert not self.c.packed, "a packed ring has no such indices"
        self.c.next_avail = self.c.next_used = index
        self.c.in_flight = 0
        ffi.memmove(self._keep[1], bytes(2 * self.size), 2 * self.size)

    def put_back(self, chain_id: int) -> None:
        """Undo the `pop` of the chain *chain_id*, of which there was none later."""
        slots = self._keep[1][chain_id] if self.c.packed else 1
        at = int(self.c.next_avail) - slots
        if self.c.packed and at < 0:
            at += self.size
            self.c.avail_wrap ^= 1
        self.c.next_avail = at & 0xFFFF
        self.c.in_flight -= slots
        self._keep[1][chain_id] = 0

    def state(self) -> RingState:
        """Return where the ring is. Raises ValueError if chains are with the device."""
        if self.c.in_flight:
            raise ValueError(f"{self.c.in_flight} chains or slots are with the device")
        return RingState(
            int(self.c.next_avail),
            int(self.c.next_used),
            int(self.c.avail_wrap),
            int(self.c.used_wrap),
        )

    def restore(self, state: RingState) -> None:
        """Go on from *state*, before the first `pop`. Raises ValueError if no ring can be there."""
        most = self.size if self.c.packed else 1 << 16
        if not (0 <= state.next_avail < most and 0 <= state.next_used < most):
            raise ValueError(f"an index is not below {most}")
        # No chain is in flight, so the device has used up to where it has taken.
        if (state.next_avail, state.avail_wrap) != (state.next_used, state.used_wrap):
            raise ValueError("the ring has chains in flight")
        if not {state.avail_wrap, state.used_wrap} <= {0, 1}:
            raise ValueError("a wrap counter is not 0 or 1")
        self.c.next_avail, self.c.next_used = state.next_avail, state.next_used
        self.c.avail_wrap, self.c.used_wrap = state.avail_wrap, state.used_wrap

    def batch(self, most: int) -> Iterator[Chain]:
        """Pop up to *most* chains with notifications off; each is valid until the next one.

        `enable_notify` has to follow. Raises `RingError`.
        """
        lib.pyvmm_queue_disable_notify(self.c)
        while most > 0 and (chain := self.pop()) is not None:
            most -= 1
            yield chain

    def enable_notify(self) -> bool:
        """Ask for a notification of the next chain; return True if a chain is available already.

        The driver may not have notified of that one.
        """
        return bool(lib.pyvmm_queue_enable_notify(self.c))

    def should_interrupt(self) -> bool:
        """Tell whether the driver wants an interrupt for what was pushed since the last call."""
        return bool(lib.pyvmm_queue_should_interrupt(self.c))
