"""What can be asked of a machine: one table routes requests, and `openapi` describes it.

Route.handle(Call) returns  a dataclass or JSON values    a JSON document
Text                          a document of another type
Feed                          bytes without an end, one way or both
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

JSON: Final = "application/json"


class Call(NamedTuple):
    """One request.

    parameters  by name; those that were left out have their defaults
    fds         descriptors that came with it; whoever keeps one duplicates it
    """

    parameters: Mapping[str, Any]
    fds: Sequence[int]


class Text(NamedTuple):
    """A document of the type *content*."""

    body: str
    content: str


class Channel(Protocol):
    """The client's end of a feed."""

    on_data: Callable[[bytes], object]
    """Called in the server's thread with what the client sends."""
    on_gone: Callable[[], object]
    """Called in the server's thread once the client has gone."""

    def post(self, data: bytes) -> None:
        """Send *data*. Thread-safe; never blocks: what a slow client leaves no room for is lost."""

    def end(self) -> None:
        """Hang up once all is sent. Thread-safe."""


@dataclass(frozen=True)
class Feed:
    """Bytes without an end.

    begin  called in the server's thread with the client's end
    lost   returns what to send instead of so many bytes that were lost
    """

    begin: Callable[[Channel], object]
    lost: Callable[[int], bytes]


class Parameter(NamedTuple):
    """A member of the JSON object that a request brings.

    choices  what a text may be; (): anything
    """

    what: str
    default: str | bool
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> Any:
        """Return *value*. Raises `UserError`: it is of another type, or none of the choices."""
        if type(value) is not type(self.default):
            kind = "true or false" if isinstance(self.default, bool) else "a text"
            raise UserError(f"{name}: {json.dumps(value)[:80]} is not {kind}")
        if self.choices and value not in self.choices:
            raise UserError(
                f"{name}: there is no {str(value)[:40]!r}", f"use {', '.join(self.choices)}"
            )
        return value


@dataclass(frozen=True, kw_only=True)
class Route:
    """One request that can be made.

    handle    does it; called in the thread of the machine's loop. A `UserError` is status 409,
              any other `VmmError` 500. What takes long is a generator that yields between its
              parts, which the loop does one a round
    gives     the dataclass that it returns, or else the type of a document or of a feed
    fds       how many descriptors have to come with the request (SCM_RIGHTS)
    more_fds  how many more may
    protocol  what the connection becomes (``Upgrade``); "": it stays HTTP
    """

    method: str
    path: str
    summary: str
    handle: Callable[[Call], Any]
    gives: type | str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    fds: int = 0
    more_fds: int = 0
    protocol: str = ""

    def call(self, body: bytes, fds: Sequence[int]) -> Call:
        """Return the request with *body* and *fds*. Raises `UserError`: it is not one of these."""
        try:
            given = json.loads(body) if body.strip() else {}
        except (ValueError, RecursionError) as error:
            raise UserError("the body is not JSON", "send an object, or nothing") from error
        if not isinstance(given, dict):
            raise UserError("the body is no JSON object", "send an object, or nothing")
        for name in given.keys() - self.parameters.keys():
            raise UserError(f"{name[:40]}: no parameter of {self.method} {self.path}")
        if not self.fds <= len(fds) <= self.fds + self.more_fds:
            most = f" to {self.fds + self.more_fds}" if self.more_fds else ""
            raise UserError(
                f"{self.method} {self.path} takes {self.fds}{most} descriptors, "
                f"and {len(fds)} came",
                "pass them with the first bytes of the request (SCM_RIGHTS)",
            )
        return Call(
            {
                name: one.check(name, given[name]) if name in given else one.default
                for name, one in self.parameters.items()
            },
            fds,
        )
