"""The base of everything that owns a resource and is closed by ``with``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Closeable:
    """Own something until `close`, which ``with`` calls.

    No class in vmm has ``__del__``: forgetting to close is a bug, and tests should see it.
    """

    def close(self) -> None:
        """Release what is owned. Idempotent."""
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
