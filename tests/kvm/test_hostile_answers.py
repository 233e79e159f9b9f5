"""What the run loop answers in C, against a model: any access to any address, and full sinks.

These need no KVM: an exit is a ``kvm_run`` that a test fills in. Nor Hypothesis, which lab hosts
lack: worlds come of seeds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from tests.virtio.guarded import GuardedArray
from vmm._native import ffi, lib

WORLDS = 300
SIZE, FULL_AT = 4, 3
ADDRESSES = (0, 0x1000, 0x1004, 0x1008, 0x2000, 0x2001, (1 << 64) - 8)
KINDS = (
    lib.PYVMM_ANSWER_EVENTFD,
    lib.PYVMM_ANSWER_SINK,
    lib.PYVMM_ANSWER_SHADOW,
    lib.PYVMM_ANSWER_UNCHANGED,
    lib.PYVMM_ANSWER_INTERRUPT_STATUS,
    lib.PYVMM_ANSWER_INTERRUPT_ACK,
)
LOADS = (lib.PYVMM_ANSWER_SHADOW, lib.PYVMM_ANSWER_INTERRUPT_STATUS)


class World:
    """Answers for some addresses, a sink, an interrupt, and what they have to be."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        self.ring = GuardedArray("uint8_t", SIZE)
        self.sink: Any = ffi.new("struct pyvmm_sink *")
        self.sink.ring, self.sink.size, self.sink.full_at = self.ring.c, SIZE, FULL_AT
        self.sink.eventfd = self.fds[1]
        self.interrupt: Any = ffi.new("struct pyvmm_interrupt *", {"eventfd": self.fds[2]})
        chosen = sorted(random.choices(ADDRESSES, k=random.choice((0, 1, 2, 5, 8))))
        self.entries = [
            (address, random.choice(KINDS), random.getrandbits(64)) for address in chosen
        ]
        # Behind the entries is a guard page.
        self.array = GuardedArray("struct pyvmm_answered", max(1, len(chosen)))
        for index, (address, kind, value) in enumerate(self.entries):
            entry = self.array.c[index]
            entry.address, entry.answer, entry.eventfd = address, kind, self.fds[0]
            entry.interrupt, entry.flip_when_full = self.interrupt, 0x20
            entry.sink = self.sink if kind == lib.PYVMM_ANSWER_SINK or value & 1 else ffi.NULL
            lib.pyvmm_set_value(ffi.addressof(entry), value)
        self.answers = ffi.new("struct pyvmm_answers *")
        self.answers.count, self.answers.entries = len(chosen), self.array.c
        self.run: Any = ffi.new("struct kvm_run *")
        self.vcpu = ffi.new("struct pyvmm_vcpu *", {"run": self.run, "fd": -1})
        lib.pyvmm_set_answers(self.vcpu, self.answers)
        self.bytes: list[int] = []
        self.takes = self.was_full = False
        self.status = self.standing = self.doorbells = self.written = 0
        self.woken = False
        self.drained = GuardedArray("uint8_t", SIZE)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        for each in (self.ring, self.array, self.drained):
            each.close()

    def put(self, byte: int) -> bool:
        if len(self.bytes) == SIZE:
            return False
        self.woken |= not self.bytes
        self.bytes.append(byte)
        self.written += 1
        return True

    def full(self) -> bool:
        self.was_full |= len(self.bytes) >= FULL_AT
        return len(self.bytes) >= FULL_AT

    def load(self, kind: int, value: int, size: int) -> int | None:
        """Return what a load gets; None: Python has to answer it."""
        if kind == lib.PYVMM_ANSWER_SHADOW:
            return value ^ (0x20 if value & 1 and self.full() else 0)
        if kind == lib.PYVMM_ANSWER_INTERRUPT_STATUS and size == 4:
            return self.status | self.standing
        return None

    def store(self, kind: int, value: int, stored: int, size: int) -> bool:
        if kind == lib.PYVMM_ANSWER_EVENTFD:
            self.doorbells += 1
            return True
        if kind == lib.PYVMM_ANSWER_SINK:
            return self.takes and self.put(stored & 0xFF)
        if kind == lib.PYVMM_ANSWER_UNCHANGED:
            return stored == value
        if kind == lib.PYVMM_ANSWER_INTERRUPT_ACK and size == 4:
            self.status &= ~stored
            return True
        return False

    def access(self) -> None:
        """Make one access of the guest's; check the answer."""
        random = self.random
        size, is_write = random.choice((1, 2, 4, 4, 8)), random.random() < 0.6
        address = random.choice(ADDRESSES) + random.choice((0, 0, 0, 1, -1, 4)) & (1 << 64) - 1
        values = [value for _, _, value in self.entries] + [1, 2, random.getrandbits(64)]
        stale = random.choice(values)  # beyond its size, an exit has what the last one left
        stored = stale & (1 << 8 * size) - 1
        mmio = self.run.mmio
        mmio.phys_addr, mmio.len, mmio.is_write = address, size, is_write
        ffi.memmove(mmio.data, stale.to_bytes(8, "little"), 8)
        must: int | None = None
        answered = False
        for where, kind, value in self.entries:
            if where != address or answered or (kind in LOADS) == is_write:
                continue
            if is_write:
                answered = self.store(kind, value, stored, size)
            else:
                must = self.load(kind, value, size)
                answered = must is not None
        assert bool(lib.pyvmm_answer(self.vcpu)) == answered
        if must is not None:
            assert int.from_bytes(bytes(ffi.buffer(mmio.data, 8)), "little") == must

    def drain(self) -> None:
        most = self.random.choice((0, 1, 2, SIZE, SIZE))
        was_full = ffi.new("int *")
        out = self.drained.c + (SIZE - most)
        count = lib.pyvmm_sink_drain(self.sink, out, most, was_full)
        must, self.bytes = self.bytes[:most], self.bytes[most:]
        assert list(ffi.buffer(out, most)[:count]) == must
        assert bool(was_full[0]) == (self.was_full and bool(must))
        if must:
            self.was_full = False

    def other(self) -> None:
        """Do what devices and Python do."""
        random = self.random
        what = random.randrange(6)
        if what == 0:
            self.takes = random.random() < 0.8
            lib.pyvmm_sink_take_stores(self.sink, self.takes)
        elif what == 1:
            byte = random.randrange(256)
            assert lib.pyvmm_sink_put(self.sink, byte) == (0 if self.put(byte) else -11)
        elif what == 2:
            bits = random.getrandbits(2)
            lib.pyvmm_interrupt_raise(self.interrupt, bits)
            self.status |= bits
        elif what == 3:
            self.standing = random.getrandbits(2)
            lib.pyvmm_interrupt_stand(self.interrupt, self.standing)
        elif what == 4:
            assert bool(lib.pyvmm_sink_full(self.sink)) == self.full()
        else:
            self.drain()

    def check(self) -> None:
        """Check counters and eventfds."""
        assert lib.pyvmm_sink_waiting(self.sink) == len(self.bytes)
        assert lib.pyvmm_sink_written(self.sink) == self.written
        assert self.count(0) == self.doorbells
        self.doorbells = 0
        if self.woken:
            assert self.count(1), "the first byte wakes"
            self.woken = False
        else:
            assert not self.count(1)

    def count(self, which: int) -> int:
        try:
            return os.eventfd_read(self.fds[which])
        except BlockingIOError:
            return 0


@contextmanager
def world(seed: int) -> Iterator[World]:
    made = World(Random(seed))  # noqa: S311
    try:
        yield made
    finally:
        made.close()


def test_each_access_is_answered_as_python_would() -> None:
    for seed in range(WORLDS):
        with world(seed) as made:
            for _ in range(60):
                (made.access if made.random.random() < 0.7 else made.other)()
                made.check()


def test_vcpus_that_put_at_once_lose_no_byte() -> None:
    """Each puts its own byte as often as there is room; all of them come out."""
    with world(1) as made:
        size = 1 << 16
        ring = ffi.new("uint8_t[]", size)
        made.sink.ring, made.sink.size, made.sink.full_at = ring, size, size
        lib.pyvmm_sink_take_stores(made.sink, 1)
        entry = ffi.new("struct pyvmm_answered *")
        entry.address, entry.answer, entry.sink = 0x1000, lib.PYVMM_ANSWER_SINK, made.sink
        answers = ffi.new("struct pyvmm_answers *", {"count": 1, "entries": entry})
        each = size // 2

        def run(byte: int) -> None:
            page = ffi.new("struct kvm_run *")
            vcpu = ffi.new("struct pyvmm_vcpu *", {"run": page, "fd": -1})
            lib.pyvmm_set_answers(vcpu, answers)
            page.mmio.phys_addr, page.mmio.len, page.mmio.is_write = 0x1000, 1, 1
            page.mmio.data[0] = byte
            for _ in range(each):
                assert lib.pyvmm_answer(vcpu)

        threads = [threading.Thread(target=run, args=(byte,)) for byte in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert lib.pyvmm_sink_waiting(made.sink) == size
        out = bytes(ffi.buffer(ring, size))
        assert (out.count(1), out.count(2)) == (each, each)
