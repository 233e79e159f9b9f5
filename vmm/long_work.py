"""Long work in the thread of a loop: done in parts, between which the loop has its turn.

Work is a generator that yields between its parts, each of which takes some milliseconds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from vmm.closeable import Closeable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

T = TypeVar("T")


class LongWork(Closeable):
    """Do work in parts, each by *call_soon*. Belongs to the loop's thread."""

    def __init__(self, call_soon: Callable[[Callable[[], object]], object]) -> None:
        self._call_soon = call_soon
        self._begun: set[Generator[None, None, None]] = set()
        self._closed = False

    def begin(self, work: Generator[None, None, None]) -> None:
        """Do the first part of *work* now, and the others soon. Does nothing once closed."""
        if not self._closed:
            self._begun.add(work)
            self._go_on(work)

    def _go_on(self, work: Generator[None, None, None]) -> None:
        if work not in self._begun:
            return
        try:
            next(work)
        except BaseException as error:
            self._begun.discard(work)
            if not isinstance(error, StopIteration):
                raise
        else:
            self._call_soon(partial(self._go_on, work))

    def close(self) -> None:
        """Break off what is not done: it gets GeneratorExit. Idempotent."""
        self._closed = True
        while self._begun:
            self._begun.pop().close()


def at_once(work: Generator[None, None, T]) -> T:
    """Do all parts of *work*, and return what it returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
