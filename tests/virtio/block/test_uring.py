"""What a disk queue's io_uring does, and what it refuses: seccomp does not see its operations."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

import pytest

from vmm._native import ffi, lib
from vmm.virtio.block.device import Uring

SYS_IO_URING_REGISTER = 427
REGISTER_BUFFERS, REGISTER_FILES, REGISTER_PROBE, REGISTER_RESTRICTIONS = 0, 2, 8, 11
NOP, READV, WRITEV, FSYNC, POLL_ADD, ASYNC_CANCEL = 0, 1, 2, 3, 6, 14
ALLOWED = {READV, WRITEV, FSYNC, POLL_ADD, ASYNC_CANCEL}
LAST_OF_6_1 = 48
"""IORING_OP_SENDMSG_ZC."""


@pytest.fixture
def uring() -> Iterator[Uring]:
    made = Uring()
    assert made.c, "this kernel has no io_uring, or does not allow it"
    yield made
    made.close()


def do(uring: Uring, opcode: int, flags: int = 0) -> int:
    """Do one operation on no file; return its result."""
    entry = lib.pyvmm_uring_entry(uring.c)
    entry.opcode, entry.flags, entry.fd, entry.user_data = opcode, flags, -1, 7
    assert lib.pyvmm_uring_enter(uring.c, 1) == 0
    completion = ffi.new("struct io_uring_cqe *")
    assert lib.pyvmm_uring_next(uring.c, completion)
    assert completion.user_data == 7
    return int(completion.res)


def test_only_operations_of_a_queue_are_done(uring: Uring) -> None:
    """An open, a connect or a splice by the ring would go round every filter."""
    refused = {opcode for opcode in range(LAST_OF_6_1 + 1) if do(uring, opcode) == -errno.EACCES}
    assert refused == {*range(LAST_OF_6_1 + 1)} - ALLOWED


@pytest.mark.parametrize("bit", range(7))
def test_no_entry_has_a_flag(uring: Uring, bit: int) -> None:
    assert do(uring, READV, 1 << bit) == -errno.EACCES
    assert do(uring, READV) == -errno.EBADF


@pytest.mark.parametrize(
    "what", [REGISTER_BUFFERS, REGISTER_FILES, REGISTER_PROBE, REGISTER_RESTRICTIONS]
)
def test_nothing_can_be_registered_any_more(uring: Uring, what: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    room = ctypes.create_string_buffer(4096)
    assert libc.syscall(SYS_IO_URING_REGISTER, uring.c.fd, what, room, 1) == -1
    expected = {errno.EACCES, errno.EBADFD} if what == REGISTER_RESTRICTIONS else {errno.EACCES}
    assert ctypes.get_errno() in expected


def test_a_ring_that_is_closed_is_no_descriptor(uring: Uring) -> None:
    number = uring.c.fd
    uring.close()
    uring.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
