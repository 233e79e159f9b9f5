"""One client's session: packets of the GDB Remote Serial Protocol to replies.

A vCPU is a thread, with its number plus one. Source: the GDB manual, appendix E.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import quoteattr

from vmm.debug.debugger import SIGINT, SIGTRAP, Stop
from vmm.debug.description import CORE_COUNT, Description
from vmm.debug.monitor import Monitor
from vmm.debug.packet import PACKET_SIZE, escape, unescape
from vmm.errors import VmmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.debug.debugger import Debugger
    from vmm.machine.machine import Machine

FEATURES: Final = (
    f"PacketSize={PACKET_SIZE:x};QStartNoAckMode+;qXfer:features:read+;qXfer:threads:read+;"
    "swbreak+;hwbreak+;vContSupported+;qqemu.PhyMemMode+"
)

_OK: Final = b"OK"
_WRONG: Final = b"E16"  # EINVAL: the packet
_FAULT: Final = b"E0e"  # EFAULT: the guest's memory
_REFUSED: Final = b"E.%b"

_TEXT: Final = 1024
"""Bytes of text in one console packet."""

_HEX: Final = "([0-9a-fA-F]{1,16})"
_MEMORY: Final = re.compile(f"{_HEX},{_HEX}(?::(.*))?", re.DOTALL)
_POINT: Final = re.compile(f"([0-4]),{_HEX},{_HEX}")
_XFER: Final = re.compile(f"(features|threads):read:([^:]*):{_HEX},{_HEX}")
_ACTION: Final = re.compile(r"([csCSt])([0-9a-fA-F]{2})?(?::(-1|[0-9a-fA-F]{1,8}))?")


class Session:
    """Answer packets about *machine*, which *debugger* stops and starts.

    send  called with the data of each packet for the client, special bytes escaped
    left  whether the client has said that it leaves
    """

    def __init__(self, machine: Machine, debugger: Debugger, send: Callable[[bytes], None]) -> None:
        self._debugger = debugger
        self._monitor = Monitor(debugger, machine)
        self._send = send
        self._selected = 0  # the vCPU that registers and memory are of
        self._chosen: int | None = None  # the vCPU that c and s are for; None: all
        self._last = Stop(0, SIGTRAP)
        self._description: Description | None = None
        self.left = False
        self.no_acks = False

    def begin(self) -> None:
        """Stop the machine: gdb takes it for granted. Raises `HostError`."""
        self._debugger.on_stop = self._on_stop
        self._debugger.stop()

    # --- what comes ------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Stop the machine, as ^C asks for. Raises `HostError`."""
        if not self._debugger.stopped:
            self._debugger.stop()
            self._on_stop(Stop(self._debugger.awake(self._selected), SIGINT))

    def packet(self, data: bytes) -> None:
        """Carry out the packet *data*."""
        try:
            reply = self._answer(data)
        except VmmError as error:
            # gdb shows the text of an answer E.text, also where it knows no number for it.
            reply = _FAULT if data[:1] in b"mMxX" else _REFUSED % escape(str(error).encode())
        except ValueError:
            reply = _WRONG
        if reply is not None:
            self._send(reply)

    def _on_stop(self, stop: Stop) -> None:
        self._last, self._selected = stop, stop.vcpu
        if stop.text:
            self._say(stop.text)
        self._send(self._stop_reply())

    def _say(self, text: str) -> None:
        """Show *text* to the user."""
        data = f"{text}\n".encode()
        for at in range(0, len(data), _TEXT):
            self._send(b"O" + data[at : at + _TEXT].hex().encode())

    def _stop_reply(self) -> bytes:
        stop = self._last
        return f"T{stop.signal:02x}{stop.reason}thread:{stop.vcpu + 1:x};".encode()

    # --- packets ---------------------------------------------------------------------------------

    def _answer(self, data: bytes) -> bytes | None:
        """Return the reply to *data*; empty: it is not supported; None: it comes later."""
        kind, rest = data[:1], data[1:]
        simple: dict[bytes, Callable[[bytes], bytes | None]] = {
            b"?": lambda _: self._stop_reply(),
            b"g": lambda _: self._core(),
            b"G": self._set_core,
            b"p": self._register,
            b"P": self._set_register,
            b"m": self._read,
            b"M": self._write,
            b"X": self._write_binary,
            b"H": self._select,
            b"T": lambda text: _OK if self._thread(text.decode()) is not None else _WRONG,
            b"z": lambda text: self._point(text, insert=False),
            b"Z": lambda text: self._point(text, insert=True),
            b"c": lambda text: self._resume(text, step=False),
            b"s": lambda text: self._resume(text, step=True),
            b"D": lambda _: self._leave(),
            b"k": lambda _: self._kill(),
            b"q": self._query,
            b"Q": self._set,
            b"v": self._verbose,
        }
        if kind not in simple:
            return b""
        if not self._debugger.stopped and kind not in (b"?", b"D", b"k", b"q", b"Q", b"v"):
            return _WRONG  # the machine runs
        return simple[kind](rest)

    def _thread(self, text: str) -> int | None:
        """Return the index of the vCPU of thread id *text*; None: all. Raises ValueError."""
        if text in ("-1", "0", ""):
            return 0 if text != "-1" else None
        index = int(text, 16) - 1
        if not 0 <= index < self._debugger.count:
            raise ValueError(text)
        return index

    def _select(self, text: bytes) -> bytes:
        index = self._thread(text[1:].decode())
        if text[:1] == b"g":
            self._selected = index or 0
        else:
            self._chosen = None if text[1:] in (b"-1", b"0") else index
        return _OK

    # registers

    def _described(self) -> Description:
        if self._description is None:
            self._description = self._debugger.registers(0).describe()
        return self._description

    def _core(self) -> bytes:
        registers = self._debugger.registers(self._selected)
        core = self._described().registers[:CORE_COUNT]
        return b"".join(registers.get(each.name, each.size) for each in core).hex().encode()

    def _set_core(self, text: bytes) -> bytes:
        data = bytes.fromhex(text.decode())
        registers = self._debugger.registers(self._selected)
        # cpsr comes last, and which register sp is goes by the cpsr before.
        for each in self._described().registers[:CORE_COUNT]:
            value, data = data[: each.size], data[each.size :]
            if len(value) == each.size:
                registers.set(each.name, value)
        return _OK

    def _register(self, text: bytes) -> bytes:
        number, known = int(text, 16), self._described().registers
        if number >= len(known):
            return _WRONG
        registers = self._debugger.registers(self._selected)
        try:
            return registers.get(known[number].name, known[number].size).hex().encode()
        except VmmError:  # not readable now: gdb shows <unavailable>
            return b"xx" * known[number].size

    def _set_register(self, text: bytes) -> bytes:
        number, _, value = text.partition(b"=")
        known = self._described().registers
        data = bytes.fromhex(value.decode())
        if int(number, 16) >= len(known) or len(data) != known[int(number, 16)].size:
            return _WRONG
        self._debugger.registers(self._selected).set(known[int(number, 16)].name, data)
        return _OK

    # memory

    def _memory(self, text: str) -> tuple[int, int, str]:
        match = _MEMORY.fullmatch(text)
        if match is None or int(match[2], 16) > PACKET_SIZE // 2:
            raise ValueError(text)
        return int(match[1], 16), int(match[2], 16), match[3] or ""

    def _read(self, text: bytes) -> bytes:
        address, size, _ = self._memory(text.decode())
        regime = self._debugger.registers(self._selected).regime()
        return self._debugger.memory.read(regime, address, size).hex().encode()

    def _write(self, text: bytes) -> bytes:
        address, size, digits = self._memory(text.decode())
        return self._store(address, size, bytes.fromhex(digits))

    def _write_binary(self, text: bytes) -> bytes:
        where, _, data = text.partition(b":")
        address, size, _ = self._memory(where.decode())
        return self._store(address, size, unescape(data))

    def _store(self, address: int, size: int, data: bytes) -> bytes:
        if len(data) != size:
            return _WRONG
        regime = self._debugger.registers(self._selected).regime()
        self._debugger.memory.write(regime, address, data)
        return _OK

    def _point(self, text: bytes, *, insert: bool) -> bytes:
        match = _POINT.fullmatch(text.decode())
        if match is None:
            return _WRONG
        kind, address, size = int(match[1]), int(match[2], 16), int(match[3], 16)
        if not insert:
            self._debugger.breakpoints.remove(kind, address, size)
            return _OK
        regime = self._debugger.registers(self._selected).regime()
        self._debugger.breakpoints.insert(kind, address, size, regime)
        return _OK

    # run control

    def _resume(self, text: bytes, *, step: bool) -> bytes | None:
        if text:  # c ADDRESS: gdb sets pc instead
            return _WRONG
        every = range(self._debugger.count)
        chosen = self._selected if self._chosen is None else self._chosen
        self._debugger.go({chosen: True} if step else dict.fromkeys(every, False))
        return None

    def _continue(self, text: str) -> bytes | None:
        """Carry out ``vCont;ACTION[:THREAD]...``: for each thread its first action counts."""
        steps: dict[int, bool] = {}
        for part in text.split(";"):
            match = _ACTION.fullmatch(part)
            if match is None:
                return _WRONG
            index = self._thread(match[3]) if match[3] else None
            for each in range(self._debugger.count) if index is None else (index,):
                if match[1] != "t":
                    steps.setdefault(each, match[1] in "sS")
        if not self._debugger.stopped:
            return _WRONG
        self._debugger.go(steps)
        return None

    def _leave(self) -> bytes:
        self._debugger.detach()
        self.left = True
        return _OK

    def _kill(self) -> bytes | None:
        self._debugger.kill()
        self.left = True
        return None

    def _verbose(self, data: bytes) -> bytes | None:
        text = data.decode()
        if text == "Cont?":
            return b"vCont;c;C;s;S;t"
        if text.startswith("Cont;"):
            return self._continue(text.removeprefix("Cont;"))
        if text.startswith("Kill"):
            self._kill()
            return _OK
        return b""

    # queries

    def _query(self, data: bytes) -> bytes | None:
        name, _, rest = data.decode().partition(":")
        name, _, after = name.partition(",")
        queries: dict[str, Callable[[], bytes | None]] = {
            "Supported": FEATURES.encode,
            "Attached": lambda: b"1",
            "C": lambda: b"QC%x" % (self._selected + 1),
            "fThreadInfo": self._all_threads,
            "sThreadInfo": lambda: b"l",
            "ThreadExtraInfo": lambda: (
                self._state(self._thread(after) or 0).encode().hex().encode()
            ),
            "Symbol": lambda: _OK,
            "Xfer": lambda: self._transfer(rest),
            "Rcmd": lambda: self._command(bytes.fromhex(after)),
            "qemu.PhyMemMode": lambda: b"%d" % self._debugger.memory.physical,
        }
        return queries[name]() if name in queries else b""

    def _all_threads(self) -> bytes:
        return b"m" + ",".join(f"{n + 1:x}" for n in range(self._debugger.count)).encode()

    def _set(self, data: bytes) -> bytes:
        text = data.decode()
        if text == "StartNoAckMode":
            self.no_acks = True
            return _OK
        if text in ("qemu.PhyMemMode:0", "qemu.PhyMemMode:1"):
            self._debugger.memory.physical = text.endswith("1")
            return _OK
        return b""

    def _state(self, index: int) -> str:
        if not self._debugger.stopped:
            return f"vCPU {index}"
        off = self._debugger.registers(index).is_off()
        return f"vCPU {index}, {'powered off' if off else 'on'}"

    def _transfer(self, text: str) -> bytes:
        match = _XFER.fullmatch(text)
        if match is None:
            return _WRONG
        if match[1] == "threads":
            whole = self._threads_xml()
        elif match[2] == "target.xml":
            whole = self._described().xml()
        else:
            return b"E00"
        offset, size = int(match[3], 16), min(int(match[4], 16), PACKET_SIZE // 2)
        part = whole.encode()[offset : offset + size]
        more = offset + len(part) < len(whole.encode())
        return (b"m" if more else b"l") + escape(part)

    def _threads_xml(self) -> str:
        lines = (
            f'<thread id="{index + 1:x}" core="{index}" name={quoteattr(f"vCPU {index}")}>'
            f"{self._state(index)}</thread>"
            for index in range(self._debugger.count)
        )
        return f'<?xml version="1.0"?><threads>{"".join(lines)}</threads>'

    def _command(self, line: bytes) -> bytes:
        if not self._debugger.stopped:
            return _WRONG
        text = line.decode("utf-8", "replace")
        for answer in self._monitor.answer(text, self._selected):
            self._say(answer)
        return _OK
