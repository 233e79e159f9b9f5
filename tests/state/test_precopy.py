"""Guest RAM moves while it is written, over real sockets."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Event, Thread

import pytest

from tests.state.moving import PAGE, Stores, ledger, noted, pair, ram
from vmm._native import ffi
from vmm.coherence.policy import Stage2
from vmm.errors import HostError
from vmm.state.precopy import PIECE, ROUNDS, Precopy, Told
from vmm.state.reception import Reception

PAGES = 3 * PIECE + 70
SIZE = PAGES * PAGE


@pytest.fixture
def owned() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Pull(Thread):
    """The destination's end."""

    def __init__(self, reception: Reception) -> None:
        super().__init__(daemon=True)
        self.reception = reception
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.reception.run()
        except BaseException as error:  # noqa: BLE001  (the test looks at it)
            self.error = error


@pytest.mark.parametrize("connections", [1, 3])
def test_memory_that_is_written_meanwhile_arrives(owned: ExitStack, connections: int) -> None:
    """A writer stores to random pages, half of them through this process's own door."""
    source, target = ram(owned, SIZE), ram(owned, SIZE)
    source.view[: SIZE // 2] = os.urandom(SIZE // 2)
    stores, own = Stores(source), noted(source)
    ends = [pair(owned) for _ in range(connections)]
    pull = Pull(Reception(target, [end for _, end in ends]))
    stop, rounds = Event(), list[Told]()
    whole = memoryview(source.view)

    def write() -> None:
        dice = random.Random(1)  # noqa: S311  (no secret)
        while not stop.wait(rest[0]):
            page = dice.randrange(PAGES)
            if dice.random() < 0.5:
                stores.store(page, dice.randrange(256))
            else:
                with whole[page * PAGE : page * PAGE + 8] as view:
                    view[:] = bytes([page % 255] * 8)
                    with ffi.from_buffer("uint8_t[]", view) as pointer:
                        own.note(pointer, 8)

    def throttle(share: float) -> None:
        rest[0] = share / 100

    rest = [0.0]
    writer = Thread(target=write, daemon=True)
    writer.start()
    precopy = Precopy(
        source,
        stores,
        own,
        ledger(SIZE),
        [end for end, _ in ends],
        goal=0.003,
        tell=rounds.append,
        throttle=throttle,
    )
    precopy.run()
    stop.set()
    writer.join()
    precopy.collect()
    precopy.finish()
    pull.join(20)
    assert pull.error is None
    assert bytes(target.view) == bytes(source.view)
    assert rounds[0].sent + rounds[0].zero == SIZE
    assert rounds[0].zero > 0
    assert len(rounds) > 1
    for told in rounds:
        assert told.expected_downtime == pytest.approx(told.remaining / told.rate)
    whole.release()


def test_only_what_was_written_is_sent_again(owned: ExitStack) -> None:
    source, target = ram(owned, SIZE), ram(owned, SIZE)
    source.view[0] = 1
    stores, own = Stores(source), noted(source)
    near, far = pair(owned)
    pull = Pull(Reception(target, [far]))

    def tell(told: Told) -> None:
        if told.number == 0:
            stores.store(5, 1)
            stores.store(PAGES - 1, 2)

    precopy = Precopy(source, stores, own, ledger(SIZE), [near], goal=1.0, tell=tell)
    precopy.run()
    assert precopy.collect() == 2
    before = near.moved
    precopy.finish()
    pull.join(20)
    assert near.moved.raw - before.raw == 2 * PAGE
    assert bytes(target.view) == bytes(source.view)


def test_a_page_that_becomes_zero_is_cleared_at_the_destination(owned: ExitStack) -> None:
    source, target = ram(owned, 4 * PAGE), ram(owned, 4 * PAGE)
    target.view[PAGE] = 7  # as an earlier round had left it
    near, far = pair(owned)
    pull = Pull(Reception(target, [far]))
    precopy = Precopy(source, Stores(source), noted(source), ledger(4 * PAGE), [near], goal=1.0)
    precopy.finish()
    pull.join(20)
    assert bytes(target.view) == bytes(4 * PAGE)


def test_a_guest_that_writes_too_fast_is_throttled_and_then_refused(owned: ExitStack) -> None:
    size = 64 * PAGE
    source, target = ram(owned, size), ram(owned, size)
    stores, own = Stores(source), noted(source)
    near, far = pair(owned)
    Pull(Reception(target, [far]))
    shares = list[float]()

    def tell(_told: Told) -> None:
        for page in range(64):
            stores.store(page, 1)

    tell(Told(0, 0, 0, 0.0, 0.0, 0, 0.0, 0.0))
    precopy = Precopy(
        source, stores, own, ledger(size), [near], goal=0.0, tell=tell, throttle=shares.append
    )
    original = precopy.collect

    def collect() -> int:
        tell(Told(0, 0, 0, 0.0, 0.0, 0, 0.0, 0.0))
        return original()

    precopy.collect = collect  # type: ignore[method-assign]
    with pytest.raises(HostError, match=f"after {ROUNDS} rounds the rest would take"):
        precopy.run()
    assert shares == sorted(shares)
    assert shares[-1] == 0.99


def test_what_the_ledger_owes_is_counted_at_both_ends(owned: ExitStack) -> None:
    size = 4 * PAGE
    for stage2, owed in ((Stage2.FORCED_WRITE_BACK, 0), (Stage2.GUEST_DECIDES, size)):
        source, target = ram(owned, size), ram(owned, size)
        near, far = pair(owned)
        pull = Pull(Reception(target, [far]))
        promised = ledger(size, stage2)
        precopy = Precopy(source, Stores(source), noted(source), promised, [near], goal=1.0)
        precopy.finish()
        pull.join(20)
        assert precopy.maintained == owed
        assert pull.reception.maintain(promised) == owed


@pytest.mark.parametrize("end", ["source", "destination"])
def test_an_end_that_goes_away_ends_the_other(owned: ExitStack, end: str) -> None:
    source, target = ram(owned, SIZE), ram(owned, SIZE)
    source.view[:] = b"x" * SIZE
    near, far = pair(owned)
    precopy = Precopy(source, Stores(source), noted(source), ledger(SIZE), [near], goal=1.0)
    if end == "destination":
        far.close()
        with pytest.raises(HostError, match="destination has closed the connection"):
            precopy.run()
    else:
        pull = Pull(Reception(target, [far]))
        near.close()
        pull.join(20)
        assert "source has closed the connection" in str(pull.error)
