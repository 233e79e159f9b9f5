"""One port of a console device: chains on one side, a chardev on the other.

    transmitq --> send ----> output_fd      each a system call on the chain's own buffers
    receiveq <--- receive <-- input_fd

A chain that the chardev does not take at once is kept until it can: nothing is lost, and the guest
waits. What the guest sends while nobody is connected is dropped.
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
"""Bytes moved either way before other devices get a turn."""

CHAIN_COST: Final = 512
"""Bytes that a chain counts in addition to its own, because empty chains take time, too."""


class Waits(Enum):
    """What a queue waits for before it continues."""

    FOR_DRIVER = auto()
    FOR_HOST = auto()
    FOR_ITS_TURN = auto()


class Port:
    """Port *number*; *name* is empty for a console. Does not own *chardev*."""

    def __init__(self, number: int, chardev: Chardev, name: str) -> None:
        self.number, self.chardev, self.name = number, chardev, name
        self.guest_open = False
        self._out, self._in = Chain(), Chain()
        self._sent = -1  # bytes of the chain that is being sent
        self.skip = 0
        """Bytes of the next chain that were sent already, before it was put back."""
        self._receiving = False  # whether a chain waits for bytes

    @property
    def is_console(self) -> bool:
        """Whether the guest makes it a terminal (hvc), not a serial port."""
        return not self.name

    def forget_sending(self) -> None:
        """Forget the chain that is being sent, because its queue stops."""
        self._sent = -1
        self.skip = 0

    def put_back(self, queue: Queue, *, sending: bool) -> None:
        """Put the chain that is being sent, or that waits for bytes, back into its queue."""
        if sending and self._sent >= 0:
            queue.put_back(self._out.id)
            self.skip, self._sent = self._sent, -1
        elif not sending and self._receiving:
            queue.put_back(self._in.id)
            self._receiving = False

    def forget_receiving(self) -> None:
        """Forget the chain that waits for bytes, because its queue stops."""
        self._receiving = False

    def send(self, queue: Queue) -> Waits:
        """Write what the guest sends to the chardev. Raises `RingError`."""
        left = TURN
        while left > 0:
            if self._sent < 0:
                if queue.pop(self._out) is None:
                    return Waits.FOR_DRIVER
                self._sent, self.skip = self.skip, 0
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
        """Write some of the chain; return how many bytes, or -1: there is no room yet."""
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
        """Read from the chardev for the guest, if it has the port open. Raises `RingError`."""
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
        """Fill the chain; return how many bytes, or -1: there are none yet."""
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
        """Disconnect a chardev that failed. Raises `RingError` if the chain is at fault."""
        if error == errno.EFAULT:  # guest memory without a page: its file was cut short
            raise RingError(lib.PYVMM_RING_ADDRESS)
        self.chardev.hang_up(OSError(error, os.strerror(error)))
