"""Start daemon threads; running out of threads becomes `HostError`."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING

from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable


def start(name: str, target: Callable[..., object], *arguments: object) -> Thread:
    """Start a daemon thread that calls *target* with *arguments*. Raises `HostError`."""
    thread = Thread(target=target, args=arguments, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # all that Python makes of pthread_create's EAGAIN
        raise HostError(
            f"cannot start thread {name}: the host lets us have no more",
            "raise the limit (ulimit -u, or TasksMax= of a systemd unit)",
        ) from error
    return thread
