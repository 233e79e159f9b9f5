"""Fuzz a device: any access of any guest may do nothing worse than be refused.

    python3 examples/fuzz_device.py 100000

Devices import no KVM, so that this runs anywhere, thousands of accesses in a second. The seed is
printed: give it as the second argument to see the same again. scripts/fuzz has what searches by
coverage.
"""

import random

import vmm
from vmm.devices import pl031
from vmm.errors import GuestError
from vmm.loop import Loop


class Line:
    """An interrupt line that counts its changes."""

    changes, level = 0, False

    def set_level(self, level: bool) -> None:  # noqa: FBT001  (as `vmm.irq.InterruptLine` has it)
        """Take a level; a device must not tell the same one twice."""
        assert level is not self.level, "the level was told before"
        self.changes, self.level = self.changes + 1, level


DEFAULTS = ["10000", str(random.randrange(1 << 32))]  # noqa: S311

with vmm.program("[COUNT] [SEED]") as arguments:
    try:
        count, seed = map(int, (arguments + DEFAULTS[len(arguments) :]))
    except ValueError:
        raise SystemExit("usage: fuzz_device.py [COUNT] [SEED]") from None
    chance, refused = random.Random(seed), 0  # noqa: S311
    with Loop() as loop:
        line = Line()
        device = pl031.Pl031(line, loop.call_later)
        for number in range(count):
            offset = chance.choice((chance.randrange(0, 0x20, 4), chance.randrange(pl031.SIZE)))
            size, value = chance.choice((1, 2, 4, 8)), chance.getrandbits(chance.choice((1, 64)))
            try:
                if chance.random() < 0.5:
                    device.write(offset, size, value & ((1 << 8 * size) - 1))
                else:
                    answer = device.read(offset, size)
                    assert 0 <= answer < 1 << 8 * size, (number, offset, size, answer)
            except GuestError:
                refused += 1
        device.close()
    print(f"seed {seed}: {count} accesses, {refused} refused, {line.changes} changes of the line")
