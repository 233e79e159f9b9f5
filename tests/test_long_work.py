"""Work that is done in parts."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from vmm.long_work import LongWork, at_once
from vmm.loop import Loop


def work(log: list[str], parts: int, name: str = "part") -> Generator[None, None, int]:
    try:
        for number in range(parts):
            log.append(f"{name} {number}")
            yield
    finally:
        log.append(f"{name} over")
    return parts


def quiet(log: list[str], parts: int, name: str = "part") -> Generator[None, None, None]:
    yield from work(log, parts, name)


def test_others_have_their_turn_between_parts() -> None:
    log: list[str] = []
    with Loop() as loop, LongWork(loop.call_soon_threadsafe) as long:
        long.begin(quiet(log, 3, "one"))
        long.begin(quiet(log, 2, "two"))
        loop.call_soon_threadsafe(lambda: log.append("another"))
        loop.run(lambda: "one over" in log)
    assert log == [
        *("one 0", "two 0", "one 1", "two 1", "another", "one 2", "two over", "one over")
    ]


def test_what_is_not_done_is_broken_off_and_nothing_begins_any_more() -> None:
    log: list[str] = []
    with Loop() as loop, LongWork(loop.call_soon_threadsafe) as long:
        long.begin(quiet(log, 3))
        long.close()
        long.begin(quiet(log, 3, "late"))
        loop.call_soon_threadsafe(loop.stop)
        loop.run()
    assert log == ["part 0", "part over"]


def test_an_error_of_a_part_is_raised_in_the_loop() -> None:
    def fail() -> Generator[None, None, None]:
        yield
        raise ZeroDivisionError

    with Loop() as loop, LongWork(loop.call_soon_threadsafe) as long:
        long.begin(fail())
        with pytest.raises(ZeroDivisionError):
            loop.run()


def test_all_parts_at_once() -> None:
    log: list[str] = []
    assert at_once(work(log, 2)) == 2
    assert log == ["part 0", "part 1", "part over"]
