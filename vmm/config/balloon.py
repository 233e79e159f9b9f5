"""``--balloon`` and ``--balloon-size``: memory that the guest returns to the host."""

from __future__ import annotations

from vmm.config.size import parse_size
from vmm.errors import UserError


def parse_balloon(wanted: bool, size: str | None) -> int | None:  # noqa: FBT001  (a flag)
    """Return the balloon's initial size in bytes; None: no balloon.

    *wanted* is ``--balloon``, *size* is ``--balloon-size``. Raises `UserError`.
    """
    if size is not None:
        return parse_size(size, "--balloon-size")
    return 0 if wanted else None


def check_balloon(size: int, memory: int) -> None:
    """Raise `UserError` if a balloon of *size* bytes leaves nothing of *memory*."""
    if size >= memory:
        raise UserError(
            f"--balloon-size: {size >> 20} MiB are not less than the guest's {memory >> 20} MiB",
            "a guest needs some: use less",
        )
