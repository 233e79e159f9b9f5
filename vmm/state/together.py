"""Do a few things at once, each in a thread of its own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vmm import thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def together(
    name: str, tasks: Sequence[Callable[[], object]], interrupt: Callable[[], object]
) -> None:
    """Call all *tasks* at once, the last in this thread, and wait for them.

    When one fails, *interrupt* makes the others fail, too; the first error is raised.
    """
    errors: list[BaseException] = []

    def call(task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001  (it is raised by the caller)
            errors.append(error)
            interrupt()

    workers = []
    try:
        workers += [thread.start(name, partial(call, task)) for task in tasks[:-1]]
    except BaseException:
        interrupt()
        raise
    call(tasks[-1])
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
