"""Start daemon threads; running out of threads becomes `HostError`.

A thread takes up its kind's seccomp filter before anything else, if the process is confined
(`vmm.sandbox`).
"""

from __future__ import annotations

import os
from threading import Thread
from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable


LOOP: Final = lib.PYVMM_THREAD_LOOP
VCPU: Final = lib.PYVMM_THREAD_VCPU
QUEUE: Final = lib.PYVMM_THREAD_QUEUE
CONTROL: Final = lib.PYVMM_THREAD_CONTROL
"""Kinds of threads; what each may ask of the kernel is in cdefs/sandbox.toml. LOOP: as much as the
thread that starts it."""


def start(name: str, target: Callable[..., object], *arguments: object, kind: int = LOOP) -> Thread:
    """Start a daemon thread of *kind* that calls *target* with *arguments*. Raises `HostError`."""

    def run() -> None:
        error = lib.pyvmm_sandbox_thread(kind)
        if error:
            raise HostError(f"thread {name}: no seccomp filter: {os.strerror(-error)}")
        target(*arguments)

    thread = Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # all that Python makes of pthread_create's EAGAIN
        raise HostError(
            f"cannot start thread {name}: the host lets us have no more",
            "raise the limit (ulimit -u, or TasksMax= of a systemd unit)",
        ) from error
    return thread
