"""Whatever a device writes is noted, page by page: live migration sends it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.virtio.block.blk_driver import DATA, HEADER, IN, Disk
from tests.virtio.ring_driver import BASE, BUFFERS, KINDS, SIZE, Buffer, Memory
from vmm._native import ffi
from vmm.dirty_pages import SHIFT
from vmm.virtio.queue import Format, MemoryMap, Queue

PAGE = 1 << SHIFT


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Memory without the check at the end: `Watch` takes the notes."""
    memory = Memory()
    yield memory
    memory.close()


class Watch:
    """What was written to the first region since the last look, by the bytes and by the notes."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._before = b""
        self.look()

    def look(self) -> tuple[set[int], set[int]]:
        """Return the pages that have changed, and those that were noted."""
        pages = range(SIZE // PAGE)
        bitmap = ffi.new("uint64_t[]", len(pages) // 64 + 1)
        self._memory.guest.dirty.take(bitmap)  # first: a disk's thread may be at work
        now = bytes(self._memory.mappings[0].view)
        changed = {
            page
            for page in pages
            if self._before
            and now[page * PAGE : page * PAGE + PAGE]
            != self._before[page * PAGE : page * PAGE + PAGE]
        }
        self._before = now
        return changed, {page for page in pages if bitmap[page // 64] >> page % 64 & 1}


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_store_to_a_ring_is_noted(memory: Memory, kind: str, *, event_idx: bool) -> None:
    form = Format(packed=kind == "packed", event_idx=event_idx, indirect=True)
    driver = KINDS[kind](memory, 8, form)
    queue = Queue(MemoryMap(memory.guest), 8, driver.areas, form)
    watch = Watch(memory)
    writers: dict[str, int] = {}
    for turn in range(20):
        driver.add(Buffer(BUFFERS + PAGE * (turn % 3), 16, writable=True))
        watch.look()
        popped: list[int] = []

        def pop(popped: list[int] = popped) -> None:
            popped += [chain.id for chain in queue.batch(1)]

        def push(popped: list[int] = popped) -> None:
            queue.push(popped[0], 16)

        for write in (pop, push, queue.enable_notify):
            write()
            changed, noted = watch.look()
            assert changed <= noted, write.__name__
            writers[write.__name__] = writers.get(write.__name__, 0) + len(changed)
        driver.used()
    assert writers["push"] >= 20
    assert writers["enable_notify"] + writers["pop"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_ring_of_several_pages_is_noted_page_by_page(memory: Memory, kind: str) -> None:
    """What is used first is staged, and shown last: two pages of one area."""
    size = 4 * PAGE // 16
    driver = KINDS[kind](memory, size, Format(packed=kind == "packed", indirect=True))
    queue = Queue(MemoryMap(memory.guest), size, driver.areas, driver.form)
    watch = Watch(memory)
    for _ in range(3 * size // 4):
        driver.add(Buffer(BUFFERS, 1, writable=True))
        chain = queue.pop()
        assert chain is not None
        watch.look()
        queue.push(chain.id, 1)
        changed, noted = watch.look()
        assert changed
        assert changed <= noted


@pytest.mark.parametrize("size", [1, 100, 3 * PAGE])
def test_what_is_written_into_a_chain_is_noted(memory: Memory, size: int) -> None:
    """The buffer begins in the middle of a page."""
    driver = KINDS["split"](memory)
    queue = Queue(MemoryMap(memory.guest), 8, driver.areas, driver.form)
    at = BUFFERS + PAGE - 8
    for fill in ("write", "random"):
        driver.add(Buffer(at, size, writable=True))
        chain = queue.pop()
        assert chain is not None
        watch = Watch(memory)
        if fill == "write":
            chain.write(b"x" * size)
        else:
            chain.fill_random(size)
        last = (at - BASE + size - 1) // PAGE
        assert watch.look()[1] == set(range((at - BASE) // PAGE, last + 1))
        queue.push(chain.id, size)
        driver.used()


def test_a_disks_data_and_status_are_noted(make: Callable[..., Disk], memory: Memory) -> None:
    disk = make()
    disk.start()
    watch = Watch(memory)  # before the chain: a thread that begins may see it at once
    data = Buffer(DATA, 512, writable=True), Buffer(DATA + 2 * PAGE, 1024, writable=True)
    status = Buffer(DATA + 5 * PAGE, 1, writable=True)
    memory.pack(HEADER, "IIQ", IN, 0, 1)
    disk.ring.add(Buffer(HEADER, 16), *data, status, indirect=True)
    disk.notify()
    disk.used(1)
    changed, noted = watch.look()
    assert changed <= noted
    assert {(each.address - BASE) // PAGE for each in (*data, status)} <= noted


def test_nothing_is_noted_before_the_start_or_after_the_end(memory: Memory) -> None:
    memory.guest.dirty.stop()
    watch = Watch(memory)
    memory.guest.write(BASE, b"x")
    assert watch.look() == ({0}, set())
    memory.guest.dirty.start()
    memory.guest.write(BASE + PAGE - 1, b"xy")
    assert watch.look()[1] == {0, 1}
    memory.guest.write(BASE, b"x")
