"""Calls over a stream of bytes, both ways: a line of JSON each.

    {"call": "read", "with": [1073741824, 4], "as": 7}     a call; without "as" nobody waits
    {"to": 7, "is": {"bytes": "AAAAAA=="}}                 its result
    {"to": 7, "error": ["UserError", "message", "hint"]}   or its error

Values are JSON's, and bytes.
"""

from __future__ import annotations

import base64
import json
import queue
from concurrent.futures import Future
from threading import Lock, current_thread
from typing import TYPE_CHECKING, Any, Final

from vmm import thread
from vmm.errors import GuestError, HostError, UserError, VmmError

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS: Final = {"UserError": UserError, "GuestError": GuestError}
"""Errors that arrive as their own kind; all others are the host's."""

LINE_MAX: Final = 64 << 20
"""Bytes of one message: what the other end sends must not fill this one's memory."""


class Peer:
    """One end. *send* takes whole lines, from any thread; *serve* gets the other end's calls.

    *serve* is called with the method's name and its arguments, in one thread, in order.
    """

    def __init__(
        self, send: Callable[[bytes], None], serve: Callable[[str, list[Any]], Any]
    ) -> None:
        self._send = send
        self._serve = serve
        self._lock = Lock()
        self._rest = bytearray()
        self._waiting: dict[int, Future[Any]] = {}
        self._numbers = 0
        self._lost: VmmError | None = None
        self._work: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = thread.start("vmm-calls", self._answer_all)

    def call(self, method: str, *arguments: Any) -> Any:
        """Return the result of *method* at the other end. Raises its error, if it is ours."""
        done: Future[Any] = Future()
        with self._lock:
            if self._lost is not None:
                raise self._lost
            self._numbers += 1
            number = self._numbers
            self._waiting[number] = done
        self._put({"call": method, "with": arguments, "as": number})
        return done.result()

    def tell(self, method: str, *arguments: Any) -> None:
        """Call *method* at the other end, and do not wait."""
        self._put({"call": method, "with": arguments})

    def _put(self, message: dict[str, Any]) -> None:
        self._send(json.dumps(message, default=_encode, separators=(",", ":")).encode() + b"\n")

    def feed(self, data: bytes) -> None:
        """Take bytes from the other end. Raises `HostError`: they are no messages."""
        self._rest += data
        if len(self._rest) > LINE_MAX:
            raise HostError(f"a message has more than {LINE_MAX} bytes")
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        for line in lines:
            try:
                self._take(json.loads(line, object_hook=_decode))
            except (ValueError, KeyError, TypeError) as error:
                raise HostError(f"{line[:80]!r} is no message") from error

    def _take(self, message: dict[str, Any]) -> None:
        if "call" in message:
            self._work.put(message)
            return
        with self._lock:
            done = self._waiting.pop(message["to"])
        if "error" in message:
            done.set_exception(error_of(*message["error"]))
        else:
            done.set_result(message["is"])

    def _answer_all(self) -> None:
        while (message := self._work.get()) is not None:
            answer: dict[str, Any] = {"to": message.get("as")}
            try:
                answer["is"] = self._serve(message["call"], message["with"])
            except Exception as error:  # noqa: BLE001  (it belongs to the other end)
                answer["error"] = parts(error)
            if answer["to"] is not None:
                self._put(answer)

    def hang_up(self, error: VmmError) -> None:
        """End: whoever waits, and whoever calls from now on, gets *error*. Idempotent."""
        with self._lock:
            self._lost = self._lost or error
            waiting, self._waiting = self._waiting, {}
        for done in waiting.values():
            done.set_exception(error)
        self._work.put(None)

    def join(self) -> None:
        """Wait until the last call was answered, after `hang_up`. Not from `serve`."""
        if current_thread() is not self._thread:
            self._thread.join()


def parts(error: BaseException) -> list[str]:
    """Return *error* as it travels: the name of its class, its message, its hint."""
    if isinstance(error, VmmError):
        name = next((name for name, kind in KINDS.items() if isinstance(error, kind)), "HostError")
        return [name, error.message, error.hint]
    return ["HostError", f"{type(error).__name__}: {error}", ""]


def error_of(name: str, message: str, hint: str) -> VmmError:
    """Return the error that `parts` took apart."""
    return KINDS.get(name, HostError)(message, hint)


def _encode(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": base64.b64encode(value).decode()}
    raise TypeError(f"{value!r} cannot be sent")


def _decode(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["bytes"]) if value.keys() == {"bytes"} else value
