"""Starting threads, of which a host may let us have no more."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING

from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable


def start(name: str, target: Callable[..., object], *arguments: object) -> Thread:
    """Start a thread that the process's end does not wait for. Raises `HostError`."""
    thread = Thread(target=target, args=arguments, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # which is all that Python says of pthread_create's EAGAIN
        raise HostError(
            f"cannot start thread {name}: the host lets us have no more",
            "raise the limit (ulimit -u, or TasksMax= of a systemd unit)",
        ) from error
    return thread
