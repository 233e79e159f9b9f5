"""Packets of the GDB Remote Serial Protocol: ``$data#checksum``, acknowledged by ``+`` or ``-``.

Source: the GDB manual, appendix E.1 (overview of the protocol).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKET_SIZE: Final = 0x4000
"""Largest packet that a client may send, in bytes: it is told so in qSupported's answer."""

_ESCAPED: Final = b"#$*}"
_ESCAPE: Final = 0x7D
_FLIP: Final = 0x20


class Signal(Enum):
    """What a client sends besides packets."""

    ACK = "+"
    NACK = "-"
    INTERRUPT = "^C"
    BAD = "a packet with a wrong checksum, or one too long"


Item = bytes | Signal


class Parser:
    """Cut a stream into packets. It holds at most one packet of `PACKET_SIZE`, whatever comes."""

    def __init__(self) -> None:
        self._packet: bytearray | None = None  # None: between packets
        self._sum: bytearray | None = None  # the two digits after "#"
        self._too_long = False

    def feed(self, data: bytes) -> Iterator[Item]:
        """Take *data*, and yield what is complete. Bytes between packets are ignored."""
        for byte in data:
            if (item := self._take(byte)) is not None:
                yield item

    def _take(self, byte: int) -> Item | None:
        if self._sum is not None:
            self._sum.append(byte)
            return self._end() if len(self._sum) == 2 else None
        match byte:
            case 0x24:  # $: a packet begins, also where the one before has lost its end
                self._packet, self._too_long = bytearray(), False
            case 0x23 if self._packet is not None:
                self._sum = bytearray()
            case _ if self._packet is not None:
                if len(self._packet) < PACKET_SIZE:
                    self._packet.append(byte)
                else:
                    self._too_long = True
            case 0x2B:
                return Signal.ACK
            case 0x2D:
                return Signal.NACK
            case 0x03:
                return Signal.INTERRUPT
        return None

    def _end(self) -> Item:
        packet, digits = self._packet or b"", self._sum or b""
        self._packet = self._sum = None
        try:
            right = int(digits, 16) == sum(packet) & 0xFF
        except ValueError:
            right = False
        return bytes(packet) if right and not self._too_long else Signal.BAD


def frame(data: bytes) -> bytes:
    """Return *data*, whose special bytes are escaped already, as a packet."""
    return b"$%b#%02x" % (data, sum(data) & 0xFF)


def escape(data: bytes) -> bytes:
    """Return binary *data* as a packet may have it."""
    if not any(byte in data for byte in _ESCAPED):
        return data
    out = bytearray()
    for byte in data:
        out += bytes((_ESCAPE, byte ^ _FLIP)) if byte in _ESCAPED else bytes((byte,))
    return bytes(out)


def unescape(data: bytes) -> bytes:
    """Undo `escape`. An escape at the end, with nothing behind it, is left out."""
    out, escaped = bytearray(), False
    for byte in data:
        if escaped or byte != _ESCAPE:
            out.append(byte ^ _FLIP if escaped else byte)
            escaped = False
        else:
            escaped = True
    return bytes(out)
