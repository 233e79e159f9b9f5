"""All targets of scripts/fuzz, by name."""

from __future__ import annotations

from typing import Final

from tests.fuzz import boards, images, peers, rings, words
from tests.fuzz.target import Target

TARGETS: Final[dict[str, Target]] = {
    target.name: target
    for module in (images, rings, peers, boards, words)
    for target in module.TARGETS
}
