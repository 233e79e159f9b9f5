"""Choices that a fuzzer makes: a `random.Random` whose bits are its input's."""

from __future__ import annotations

from random import Random

CONTENT = 64
"""Bits. Who asks for more asks for content, not for a choice."""


class Given(Random):
    """Choose by *data* instead of at random, and by a generator of its own once that has ended.

    So each case comes to its end, and is the same for the same *data*. Content, such as a disk's,
    takes 8 bytes of *data* however much there is of it: what it is decides nothing.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data, self._at = data, 0
        self._rest = Random(data)  # noqa: S311  (nobody's secret)

    @property
    def more(self) -> bool:
        """Whether *data* has not ended."""
        return self._at < len(self._data)

    def getrandbits(self, k: int, /) -> int:
        """Return the next *k* bits, rounded up to bytes."""
        if k > CONTENT:
            return Random(self.getrandbits(CONTENT)).getrandbits(k)  # noqa: S311
        size = -(-k // 8)
        if not self.more:
            return self._rest.getrandbits(k) if k else 0
        chosen = int.from_bytes(self._data[self._at : self._at + size], "little")
        self._at += size
        return chosen & ((1 << k) - 1)

    def random(self) -> float:
        """Return a number of [0, 1) in steps of 1/256."""
        return self.getrandbits(8) / 256
