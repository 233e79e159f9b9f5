"""Keys for pyvmm among those for the guest: a prefix (Ctrl-A by default), then a key.

    C-a h    help                      C-a s KEY  Magic SysRq: a break, then KEY
    C-a x    quit                      C-a b      a break
    C-a r    reset the machine         C-a C-a    one Ctrl-A for the guest
    C-a -    a larger balloon          C-a +      a smaller balloon: more memory for the guest
    C-a m    the map of guest memory   C-a c      the keyboard to the other console
    C-a e    counters of exits

QEMU, kvmtool and screen have the same prefix.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING

from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

CTRL_A = 0x01


class EscapeCommand(Enum):
    """What a key after the prefix asks of pyvmm."""

    HELP = auto()
    QUIT = auto()
    RESET = auto()
    BREAK = auto()
    INFLATE = auto()
    DEFLATE = auto()
    MAP = auto()
    COUNTERS = auto()
    SWITCH = auto()
    SNAPSHOT = auto()
    DETACH = auto()


KEYS = {
    ord("h"): EscapeCommand.HELP,
    ord("?"): EscapeCommand.HELP,
    ord("x"): EscapeCommand.QUIT,
    ord("r"): EscapeCommand.RESET,
    ord("b"): EscapeCommand.BREAK,
    ord("-"): EscapeCommand.INFLATE,
    ord("+"): EscapeCommand.DEFLATE,
    ord("m"): EscapeCommand.MAP,
    ord("e"): EscapeCommand.COUNTERS,
    ord("c"): EscapeCommand.SWITCH,
    ord("w"): EscapeCommand.SNAPSHOT,
}
SYSRQ = ord("s")
ATTACHED = {ord("d"): EscapeCommand.DETACH}
"""Keys of a console that another process has: its client only comes and goes."""


def parse_prefix(text: str) -> int | None:
    """Return the byte that *text* names: ``C-a``, ``^A`` or ``ctrl-a``; None for ``none``.

    Raises UserError for anything else.
    """
    if text.lower() == "none":
        return None
    match = re.fullmatch(r"(?:c-|\^|ctrl-)([a-z\\\]^_])", text.lower())
    if not match:
        raise UserError(
            f"--escape {text}: not a control key", "say for example C-b, or none for no escape key"
        )
    return ord(match[1].upper()) ^ 0x40


def key_name(prefix: int) -> str:
    """Return *prefix* in the form that `parse_prefix` accepts."""
    return f"C-{chr(prefix ^ 0x40).lower()}"


def help_lines(prefix: int) -> list[str]:
    """Return the lines that C-a h shows."""
    name = key_name(prefix)
    return [
        f"{name} h      this help",
        f"{name} x      quit: switch the machine off at once",
        f"{name} r      reset the machine",
        f"{name} s KEY  Magic SysRq: a break, then KEY (h shows the guest's own list)",
        f"{name} b      a break",
        f"{name} -      take memory from the guest, by its balloon (--balloon)",
        f"{name} +      give it back",
        f"{name} m      what each range of the guest's memory is promised, and owed",
        f"{name} e      how often the guest exits, by reason and address; chains, interrupts",
        f"{name} c      the keyboard to the other console: hvc0, or the serial port",
        f"{name} w      write a snapshot (--snapshot)",
        f"{name} {name}    send {name} itself",
    ]


class EscapeKeys:
    """Split what is typed into bytes for the guest and commands for pyvmm.

    *prefix* None: all bytes are for the guest. *keys*: those after the prefix, `KEYS` by default.
    """

    def __init__(self, prefix: int | None, keys: Mapping[int, EscapeCommand] | None = None) -> None:
        self._prefix = prefix
        self._keys = KEYS if keys is None else keys
        self._after_prefix = False
        self._after_sysrq = False

    def feed(self, data: bytes) -> list[bytes | EscapeCommand]:
        """Return bytes and commands in the order typed; a sequence may span calls.

        A SysRq is BREAK and one byte. After the prefix, a key without a meaning is HELP.
        """
        found: list[bytes | EscapeCommand] = []
        plain = bytearray()
        for byte in data:
            meaning = self._meaning(byte)
            if isinstance(meaning, EscapeCommand):
                if plain:
                    found.append(bytes(plain))
                    plain.clear()
                found.append(meaning)
            elif meaning is not None:
                plain.append(meaning)
        if plain:
            found.append(bytes(plain))
        return found

    def _meaning(self, byte: int) -> EscapeCommand | int | None:
        if self._after_prefix:
            self._after_prefix = False
            if byte == self._prefix:
                return byte
            if byte == SYSRQ and self._keys is not ATTACHED:
                self._after_sysrq = True
                return EscapeCommand.BREAK
            return self._keys.get(byte, EscapeCommand.HELP)
        if byte == self._prefix and not self._after_sysrq:
            self._after_prefix = True
            return None
        self._after_sysrq = False
        return byte
