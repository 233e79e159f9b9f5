"""Write without blocking, and without changing what others share."""

from __future__ import annotations

import os
import select
import socket
import threading
from pathlib import Path

import pytest

from vmm.terminal.nonblocking import NonblockingWriter

BLOCK = bytes(4096)


def fill(outlet: NonblockingWriter) -> int:
    """Write until the file accepts no more."""
    total = 0
    while written := outlet.write(BLOCK):
        total += written
    return total


def test_a_full_pipe_takes_nothing_and_its_descriptor_still_blocks_for_others() -> None:
    reading, writing = os.pipe()
    outlet = NonblockingWriter(writing)
    assert fill(outlet) >= len(BLOCK)
    assert os.get_blocking(writing)
    os.read(reading, len(BLOCK))
    assert outlet.write(BLOCK) == len(BLOCK)
    outlet.close()
    outlet.close()
    os.close(reading)
    os.close(writing)


def test_a_full_terminal_takes_nothing_and_its_descriptor_still_blocks_for_others() -> None:
    master, slave = os.openpty()
    outlet = NonblockingWriter(slave)
    assert fill(outlet) > 0
    assert os.get_blocking(slave)
    outlet.close()
    os.close(master)
    os.close(slave)


def test_a_full_socket_takes_nothing_and_still_blocks_for_others() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outlet = NonblockingWriter(ours.fileno())
        assert fill(outlet) > 0
        assert os.get_blocking(ours.fileno())
        outlet.close()
        ours.fileno()


def test_a_pseudo_terminals_master_is_itself_not_a_new_one() -> None:
    master, slave = os.openpty()
    outlet = NonblockingWriter(master)
    assert outlet.write(b"typed\n") == 6
    assert os.read(slave, 100) == b"typed\n"
    outlet.close()
    assert os.get_blocking(master)
    os.close(master)
    os.close(slave)


def test_a_regular_file_is_appended_to_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb", buffering=0) as file:
        file.write(b"before ")
        outlet = NonblockingWriter(file.fileno())
        assert outlet.write(b"and ") == 4
        outlet.close()
        file.write(b"after")
    assert path.read_bytes() == b"before and after"


def test_a_pipe_without_reader_raises_instead_of_killing() -> None:
    reading, writing = os.pipe()
    outlet = NonblockingWriter(writing)
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        outlet.write(b"x")
    outlet.close()
    late = NonblockingWriter(writing)  # opened when the reader had already gone
    with pytest.raises(BrokenPipeError):
        late.write(b"x")
    late.close()
    assert os.get_blocking(writing)
    os.close(writing)


def test_a_full_disk_raises() -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        outlet = NonblockingWriter(file.fileno())
        with pytest.raises(OSError, match="No space left"):
            outlet.write(b"x")
        outlet.close()


def test_a_closed_descriptor_is_refused() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with pytest.raises(OSError, match="Bad file descriptor"):
        NonblockingWriter(writing)


def test_it_polls_writable_when_it_takes_bytes_again() -> None:
    reading, writing = os.pipe()
    outlet = NonblockingWriter(writing)
    fill(outlet)
    assert select.select([], [outlet.fileno()], [], 0)[1] == []
    thread = threading.Timer(0.02, lambda: os.read(reading, 1 << 20))
    thread.start()
    assert select.select([], [outlet.fileno()], [], 5)[1]
    thread.join()
    outlet.close()
    os.close(reading)
    os.close(writing)
