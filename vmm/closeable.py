"""What is closed when a ``with`` ends: the base of everything that owns something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Closeable:
    """Owns something until `close`, which ``with`` calls; closing again does no harm.

    No class here has ``__del__``: what is not closed is a bug that tests shall see.
    """

    def close(self) -> None:
        """Let go of what is owned."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
