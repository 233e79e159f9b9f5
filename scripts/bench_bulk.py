"""Guest memory in bulk: copies against memcpy, scans for zeroes, walks through dirty bitmaps."""

from __future__ import annotations

import ctypes
import random
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bench_report import Figure, Report, median, undisturbed

from vmm._native import ffi, lib
from vmm.memory import GuestMemory, Mapping, Region

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

GROUP = "guest memory in bulk"
ROUNDS = 30
BASE = 0x4000_0000
RAM = 256 << 20
SIZES = {"4 KiB": 4 << 10, "64 KiB": 64 << 10, "1 MiB": 1 << 20, "64 MiB": 64 << 20}
PER_LAP = 64 << 20
"""Bytes moved in one lap, whatever the size of a copy."""
PAGE = 4096
GUEST_PAGES = (64 << 30) // PAGE
"""Pages of the guest whose dirty bitmap is walked."""


def measure(report: Report, options: argparse.Namespace) -> None:
    """Add figures for copies and scans to *report*."""
    rounds = options.rounds or ROUNDS
    with Mapping.anonymous(RAM) as mapping:
        _populate(mapping)
        for name, size in SIZES.items():
            report.add(_copies(mapping, name, size, rounds))
        _zero_scan(report, mapping, rounds)
    for dirty in (0.0001, 0.01, 0.5):
        _dirty_walk(report, dirty, max(rounds // 3, 1))


def _populate(mapping: Mapping) -> None:
    with _pointer(mapping.view) as pointer:
        ffi.memmove(pointer, bytes(PER_LAP), PER_LAP)


@contextmanager
def _pointer(buffer: Any) -> Iterator[Any]:
    with ffi.from_buffer("uint8_t[]", buffer) as pointer:
        yield pointer


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _copies(mapping: Mapping, name: str, size: int, rounds: int) -> Figure:
    """Compare `GuestMemory.write` with the C library's memcpy, in turns."""
    memory = GuestMemory([Region(BASE, mapping.view)])
    source = bytes(size)
    copies = PER_LAP // size
    with _pointer(mapping.view) as pointer, _pointer(source) as origin:
        address = int(ffi.cast("uintptr_t", pointer))
        start = int(ffi.cast("uintptr_t", origin))

        def plain() -> None:
            for at in range(0, copies * size, size):
                ctypes.memmove(address + at, start, size)

        def ours() -> None:
            for at in range(BASE, BASE + copies * size, size):
                memory.write(at, source)

        ratios, times = [], []
        for lap in range(2 * rounds):
            order = (plain, ours) if lap % 2 else (ours, plain)
            taken = {work: _seconds(work) for work in order}
            ratios.append(taken[plain] / taken[ours])
            times.append(taken[ours])
    large = size >= 1 << 20
    return median(
        ratios,
        group=GROUP,
        name=f"copy into the guest, {name} at a time",
        unit="of memcpy",
        at_least=0.9 if large else None,
        note=f"{PER_LAP / undisturbed(times) / 1e9:.1f} GB/s",
    )


def _zero_scan(report: Report, mapping: Mapping, rounds: int) -> None:
    pages = PER_LAP // PAGE
    bitmap = ffi.new("uint64_t[]", pages // 64)
    with _pointer(mapping.view) as pointer:

        def scan() -> None:
            if lib.pyvmm_nonzero_pages(pointer, pages, PAGE, bitmap):
                raise RuntimeError("zeroes were found to be something else")

        rates = [PER_LAP / _seconds(scan) / 1e9 for _ in range(2 * rounds)]
    report.add(median(rates, group=GROUP, name="scan for pages of zeroes", unit="GB/s"))


def _dirty_walk(report: Report, share: float, rounds: int) -> None:
    """Find the runs of dirty pages of a 64 GiB guest, *share* of which are dirty."""
    chance = random.Random(7)  # noqa: S311  (the same pages each time)
    bitmap = bytearray(GUEST_PAGES // 8)
    for _ in range(int(GUEST_PAGES * min(share, 0.01))):
        page = chance.randrange(GUEST_PAGES)
        bitmap[page // 8] |= 1 << page % 8
    if share > 0.01:
        bitmap[:] = chance.randbytes(len(bitmap))
    runs = ffi.new("uint64_t[]", 2 * 4096)
    at = ffi.new("uint64_t *")

    def walk() -> None:
        at[0] = 0
        with ffi.from_buffer("uint64_t[]", bitmap) as words:
            while lib.pyvmm_bitmap_runs(words, GUEST_PAGES, at, runs, 4096) == 4096:
                pass

    laps = [_seconds(walk) * 1e3 for _ in range(rounds)]
    name = f"dirty bitmap of 64 GiB, {share:.2%} dirty"
    report.add(median(laps, group=GROUP, name=name, unit="ms"))
