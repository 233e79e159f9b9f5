"""One port of a console device: chains on one side, a chardev on the other.

    transmitq --> send ----> output_fd      each a system call on the chain's own buffers
    receiveq <--- receive <-- input_fd

A chain that its end does not take at once is kept until that goes on: nothing is lost, and the
guest waits. What it sends while nobody is there is dropped.
"""

from __future__ import annotations

import errno
import os
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.virtio.queue import Chain, RingError

if TYPE_CHECKING:
    from vmm.virtio.console.chardev.chardev import Chardev
    from vmm.virtio.queue import Queue

TURN: Final = 1 << 20
"""Bytes, either way, before other devices get their turn."""

CHAIN_COST: Final = 512
"""Bytes that a chain counts for beside its own: empty ones take time, too."""


class Waits(Enum):
    """What a queue goes on with."""

    FOR_DRIVER = auto()
    FOR_HOST = auto()
    FOR_ITS_TURN = auto()


class Port:
    """Port *number*, called *name* if it is no console. Owns nothing."""

    def __init__(self, number: int, chardev: Chardev, name: str) -> None:
        self.number, self.chardev, self.name = number, chardev, name
        self.guest_open = False
        self._out, self._in = Chain(), Chain()
        self._sent = -1  # bytes of the chain that is being sent
        self._receiving = False  # whether a chain waits for bytes

    @property
    def is_console(self) -> bool:
        """Whether the guest shall make it a terminal (hvc) rather than a serial port."""
        return not self.name

    def forget_sending(self) -> None:
        """Give up the chain that is being sent: its queue goes."""
        self._sent = -1

    def forget_receiving(self) -> None:
        """Give up the chain that waits for bytes: its queue goes."""
        self._receiving = False

    def send(self, queue: Queue) -> Waits:
        """Pass on what the guest sends. Raises `RingError`."""
        left = TURN
        while left > 0:
            if self._sent < 0:
                if queue.pop(self._out) is None:
                    return Waits.FOR_DRIVER
                self._sent = 0
            done = self._write()
            if done < 0:
                return Waits.FOR_HOST
            self._sent += done
            left -= done + CHAIN_COST
            if self._sent >= self._out.readable or self.chardev.output_fd < 0:
                queue.push(self._out.id, 0)
                self._sent = -1
        return Waits.FOR_ITS_TURN

    def _write(self) -> int:
        """Write some of the chain; return how many bytes, -1 for none until there is room."""
        fd = self.chardev.output_fd
        if fd < 0:
            return 0
        done = int(lib.pyvmm_chain_to_file(self._out.c, self._sent, fd, TURN))
        if done >= 0:
            return done
        if done == -errno.EAGAIN:
            self.chardev.want_room()
            return -1 if self.chardev.output_fd >= 0 else 0
        self._hang_up(-done)
        return 0

    def receive(self, queue: Queue) -> Waits:
        """Pass on what there is for the guest, if it listens. Raises `RingError`."""
        left = TURN
        while left > 0:
            if not self.guest_open or self.chardev.input_fd < 0 or self.chardev.input_over:
                return Waits.FOR_HOST
            if not self._receiving:
                if queue.pop(self._in) is None:
                    return Waits.FOR_DRIVER
                self._receiving = True
            done = self._read() if self._in.writable else 0
            if done < 0:
                return Waits.FOR_HOST
            queue.push(self._in.id, done)
            self._receiving = False
            left -= done + CHAIN_COST
        return Waits.FOR_ITS_TURN

    def _read(self) -> int:
        """Fill the chain; return how many bytes, -1 for none until some come."""
        done = int(lib.pyvmm_chain_from_file(self._in.c, self.chardev.input_fd, TURN))
        if done > 0:
            return done
        if done == -errno.EAGAIN:
            self.chardev.want_input()
        elif done:
            self._hang_up(-done)
        else:
            self.chardev.input_ended()
        return -1

    def _hang_up(self, error: int) -> None:
        """Let go of an end that is broken. Raises `RingError` if it is the chain that is."""
        if error == errno.EFAULT:  # guest memory that has gone: a file's that was cut short
            raise RingError(lib.PYVMM_RING_ADDRESS)
        self.chardev.hang_up(OSError(error, os.strerror(error)))
