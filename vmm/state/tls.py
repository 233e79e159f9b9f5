"""A migration's connection in TLS: a process of its own carries the bytes.

    machine <--socketpair--> carrier <--TLS--> the peer's carrier <--socketpair--> machine

The machine sends pages from C and is sealed: it reads no key, and makes no call that TLS would
take. The carrier ends when either side closes its connection. Both sides show a certificate, and
each checks that its DIR's CA has signed the other's. The files in DIR have QEMU's names.
Sources: RFC 8446; qemu-doc, "Setting up certificates".
"""

from __future__ import annotations

import os
import select
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vmm.errors import HostError, UserError

if TYPE_CHECKING:
    from pathlib import Path

AUTHORITY: Final = "ca-cert.pem"
PATIENCE: Final = 10.0
"""Seconds that a handshake may take."""
MORE_PATIENCE: Final = 60.0
"""The same, of one that has to wait for a machine."""

BUFFER: Final = 256 << 10
"""Bytes on their way in each direction."""


def context(what: str, directory: Path, *, server: bool) -> ssl.SSLContext:
    """Return the TLS of one side, by the files in *directory*. Raises `UserError`, of *what*."""
    side = "server" if server else "client"
    certificate, key = f"{side}-cert.pem", f"{side}-key.pem"
    for name in (AUTHORITY, certificate, key):
        try:
            with (directory / name).open("rb"):
                """It can be read: OpenSSL's errors name no file."""
        except OSError as error:
            raise UserError(
                f"{what}: {directory / name}: {error.strerror}",
                f"the directory has {AUTHORITY}, {certificate} and {key}",
            ) from error
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_mode = ssl.CERT_REQUIRED
    try:
        made.load_verify_locations(directory / AUTHORITY)
        made.load_cert_chain(directory / certificate, directory / key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise UserError(
            f"{what}: {directory}: {_reason(error)}",
            "its files are PEM, and the key has no password",
        ) from error
    return made


def _no_password() -> str:
    raise ValueError("the key has a password")


def _reason(error: Exception) -> str:
    reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
    return str(reason).replace("_", " ").lower()


def wrap(
    what: str,
    connection: socket.socket,
    made: ssl.SSLContext,
    name: str | None = None,
    *,
    later: bool = False,
) -> socket.socket:
    """Return a socket whose bytes go over *connection* in TLS. Takes *connection*.

    *name* is the server's, if this side is the client: its certificate has to be for it. *later*:
    the peer speaks only when it has heard of the connection by another; so the carrier does the
    handshake, and the connection ends if it fails. To be called in a process with one thread.
    Raises `HostError`, of *what*: the peer cannot be trusted, or does not speak TLS.
    """
    connection.settimeout(MORE_PATIENCE if later else PATIENCE)
    safe = made.wrap_socket(
        connection,
        server_side=name is None,
        server_hostname=name,
        do_handshake_on_connect=False,
    )
    with safe:
        if not later:
            try:
                safe.do_handshake()
            except OSError as error:  # ssl.SSLError is one
                raise HostError(
                    f"{what}: TLS: {_reason(error)}", "look at both ends' files"
                ) from error
        ours, theirs = socket.socketpair()
        with theirs:
            if not _fork():
                _be_carrier(safe, theirs, greets=later)
    return ours


def _fork() -> bool:
    """Fork a process that is nobody's child. Return whether this is the caller's."""
    if child := os.fork():
        os.waitpid(child, 0)
        return True
    os.setsid()  # a terminal's ^C is for the machine
    if os.fork():
        os._exit(0)
    return False


def _be_carrier(safe: ssl.SSLSocket, plain: socket.socket, *, greets: bool) -> None:
    """Carry bytes until either side ends, then exit; *greets*: do the handshake. Never returns."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        kept = {0, 1, 2, safe.fileno(), plain.fileno()}
        for each in {int(name) for name in os.listdir("/proc/self/fd")} - kept:  # noqa: PTH208
            with suppress(OSError):  # the listing's own
                os.close(each)
        if greets:
            safe.do_handshake()
        carry(safe, plain)
    finally:
        os._exit(0)


class _Way:
    """Bytes in one direction."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self._source, self._sink = source, sink
        self._buffer = memoryview(bytearray(BUFFER))
        self._first = self._last = 0
        self.ended = False

    def go(self) -> bool:
        """Move what can be moved; return whether that was anything."""
        moved = False
        if self._first == self._last and not self.ended:
            with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self._first, self._last = 0, self._source.recv_into(self._buffer)
                self.ended, moved = not self._last, True
        if self._first != self._last:
            with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self._first += self._sink.send(self._buffer[self._first : self._last])
                moved = True
        return moved

    @property
    def full(self) -> bool:
        """Whether there are bytes that the sink has not taken."""
        return self._first != self._last


def _events(of: _Way, to: _Way) -> int:
    """Return what to wait for at the socket that *of* reads and *to* writes."""
    return (0 if of.full else select.POLLIN) | (select.POLLOUT if to.full else 0)


def carry(safe: ssl.SSLSocket, plain: socket.socket) -> None:
    """Carry bytes between *safe* and *plain* until one of them ends, and all has gone through."""
    safe.settimeout(0)
    plain.settimeout(0)
    there, back = _Way(plain, safe), _Way(safe, plain)
    polled = select.poll()
    with suppress(OSError):  # a connection that breaks ends both
        while True:
            moved = there.go()
            moved |= back.go()
            if there.ended or back.ended:
                break
            if moved:
                continue
            polled.register(plain, _events(there, back))
            polled.register(safe, _events(back, there))
            polled.poll()
    with suppress(OSError):
        safe.settimeout(PATIENCE)
        safe.unwrap()
