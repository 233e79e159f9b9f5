"""The examples do what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.lab.host.emulated_host import Host

pytestmark = pytest.mark.lab
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_hello_prints_what_its_guest_says(lab_host: Callable[[str], Host]) -> None:
    done = lab_host("fwb").run(["python3", str(EXAMPLES / "hello.py")])
    assert (done.status, done.stdout) == (0, b"Hello from EL1!\n"), done.stderr


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_fits_on_a_screen(example: Path) -> None:
    assert len(example.read_text().splitlines()) <= 60
