"""SIGBUS in mapped files: an error where it is expected, and the end elsewhere."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from vmm import sigbus
from vmm._native import ffi, lib
from vmm.errors import HostError
from vmm.loop import Loop
from vmm.sigbus import LostError, Teller, Watched

PAGE = mmap.PAGESIZE


class File:
    """Three pages of a file, mapped and watched."""

    def __init__(self, path: Path, flags: int) -> None:
        path.write_bytes(b"x" * 3 * PAGE)
        self.path = path
        self.fd = os.open(path, os.O_RDWR)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        self.mapping = mmap.mmap(self.fd, 3 * PAGE, flags=flags, prot=protection)
        self.address = int(ffi.cast("uintptr_t", ffi.from_buffer("uint8_t[]", self.mapping)))
        self.watched = Watched("--file F", self.address, 3 * PAGE)

    def cut(self) -> None:
        os.truncate(self.path, PAGE)


@pytest.fixture(params=[mmap.MAP_SHARED, mmap.MAP_PRIVATE], ids=["shared", "private"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[File]:
    file = File(tmp_path / "file", request.param)
    yield file
    file.watched.close()
    os.close(file.fd)


def test_a_page_that_is_gone_reads_as_zeroes_and_is_an_error(file: File) -> None:
    sigbus.check()
    file.cut()
    assert file.mapping[PAGE - 1 : PAGE + 2] == b"x\0\0"
    file.mapping[2 * PAGE] = 7
    assert file.mapping[2 * PAGE] == 7
    for check in (sigbus.check, file.watched.check):
        with pytest.raises(LostError, match=f"^--file F: .* at byte {PAGE} ") as caught:
            check()
        assert isinstance(caught.value, HostError)
        assert caught.value.offset == PAGE


def test_a_handler_that_somebody_has_put_in_its_place_does_not_stay(tmp_path: Path) -> None:
    """Python's signal.signal, for instance, puts back no handler that it does not know."""
    Watched("first", 0, PAGE).close()
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    file = File(tmp_path / "file", mmap.MAP_SHARED)
    file.cut()
    assert file.mapping[PAGE] == 0
    file.watched.close()
    os.close(file.fd)


def test_a_copy_in_c_goes_on(file: File) -> None:
    file.cut()
    target = ffi.new("uint8_t[]", 3 * PAGE)
    lib.pyvmm_copy(target, ffi.cast("uint8_t *", file.address), 3 * PAGE)
    assert bytes(ffi.buffer(target)) == b"x" * PAGE + bytes(2 * PAGE)


def test_many_threads_may_meet_it_at_once(file: File) -> None:
    file.cut()
    targets = [ffi.new("uint8_t[]", 3 * PAGE) for _ in range(8)]
    source = ffi.cast("uint8_t *", file.address)
    threads = [Thread(target=lib.pyvmm_copy, args=(target, source, 3 * PAGE)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {bytes(ffi.buffer(target)) for target in targets} == {b"x" * PAGE + bytes(2 * PAGE)}


def test_the_loop_hears_of_it(file: File) -> None:
    seen: list[LostError] = []
    with Loop() as loop:

        def stop(error: LostError) -> None:
            seen.append(error)
            loop.stop()

        with Teller(loop, stop):
            file.cut()
            loop.call_later(10, loop.stop)
            loop.call_later(0, lambda: file.mapping[PAGE])
            loop.run()
        assert [each.name for each in seen] == ["--file F"]
        file.mapping[2 * PAGE]  # nobody is told, and nothing is written to a closed descriptor
        loop.call_later(0.01, loop.stop)
        loop.run()
    assert len(seen) == 1


def test_what_is_watched_no_longer_is_no_error(file: File) -> None:
    file.cut()
    assert file.mapping[PAGE] == 0
    file.watched.close()
    file.watched.close()
    sigbus.check()
    file.watched.check()


def test_entries_are_used_again_and_run_out(file: File) -> None:
    for _ in range(200):
        Watched("again", file.address, PAGE).close()
    many: list[Watched] = []
    with pytest.raises(HostError, match="too many files are mapped"):
        many.extend(Watched("many", file.address, PAGE) for _ in range(200))
    # The list comprehension above keeps none: close what is left.
    for each in list(sigbus._watched.values()):
        if each.name == "many":
            each.close()
    Watched("again", file.address, PAGE).close()


DIES = """
import mmap, os, sys
from vmm._native import ffi
from vmm.sigbus import Watched
fd = os.open(sys.argv[1], os.O_RDWR)
maps = [mmap.mmap(fd, 2 * mmap.PAGESIZE) for _ in range(2)]
address = int(ffi.cast("uintptr_t", ffi.from_buffer(maps[0])))
watched = Watched("w", address, 2 * mmap.PAGESIZE)
os.truncate(fd, 0)
maps[0][mmap.PAGESIZE]
if sys.argv[2] == "forgotten":
    watched.close()
    maps[0][0]
elif sys.argv[2] == "other":
    maps[1][0]
elif sys.argv[2] == "sent":
    os.kill(os.getpid(), 7)
print("alive")
"""


@pytest.mark.parametrize("what", ["forgotten", "other", "sent", "watched"])
def test_every_other_sigbus_ends_the_process_as_before(tmp_path: Path, what: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * PAGE))
    command = [sys.executable, "-X", "faulthandler", "-c", DIES, str(path), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if what == "watched":
        assert (done.returncode, done.stdout) == (0, "alive\n")
    else:
        assert done.returncode == -signal.SIGBUS
        assert "Bus error" in done.stderr, "faulthandler was asked"
