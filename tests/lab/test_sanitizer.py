"""A guest without caches under the sanitizer: what it wrote is read if maintenance is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.guest.flat_guest import POWER_OFF, assemble
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import Completed, inside

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

WRITES = """
    ldr x0, =0x41000000          // 16 MiB into RAM
    mov x1, #512
    ldr x2, =0x5449535453455547  // "GUESTSIT"
1:  str x2, [x0], #8
    subs x1, x1, #1
    b.ne 1b
    dsb sy
"""
WROTE = b"GUESTSIT" * 512
OFFSET = 16 << 20

WITHOUT = """
import sys
from vmm.coherence.ledger import Ledger
Ledger.before_read = lambda *_: None
from vmm.cli import main
main()
"""
"""pyvmm without the maintenance that is owed before a read."""


def run(host: Host, program: list[str], image: Path, dump: Path, *words: str) -> Completed:
    return host.run(
        [
            *(*program, "run", inside(image), "--host", "native", "--memory", "32M"),
            *("--memory-dump", inside(dump), *words),
        ],
        timeout=120,
    )


@pytest.mark.parametrize(
    ("profile", "program", "seen"),
    [
        ("nofwb", ["pyvmm"], True),
        ("nofwb", ["python3", "-c", WITHOUT], False),
        ("fwb", ["pyvmm"], True),
        ("fwb", ["python3", "-c", WITHOUT], True),
    ],
    ids=["nofwb", "nofwb, no maintenance", "fwb", "fwb, no maintenance"],
)
def test_a_dump_has_what_the_guest_wrote_past_the_caches(
    lab_host: Callable[[str], Host],
    tmp_path: Path,
    profile: str,
    program: list[str],
    seen: bool,  # noqa: FBT001  (a parameter)
) -> None:
    """With FWB the memory is coherent, so there is one copy, and nothing is owed."""
    image, dump = assemble(tmp_path, WRITES + POWER_OFF), tmp_path / "ram"
    done = run(lab_host(profile), program, image, dump, "--coherency-sanitizer")
    assert done.status == 0, done.stderr.decode()
    assert dump.stat().st_size == 32 << 20
    assert dump.stat().st_mode & 0o777 == 0o600
    with dump.open("rb") as file:
        file.seek(OFFSET)
        assert (file.read(len(WROTE)) == WROTE) is seen
    assert not list(tmp_path.glob(".ram.*"))


def test_a_dump_is_sparse_and_needs_no_sanitizer(
    lab_host: Callable[[str], Host], tmp_path: Path
) -> None:
    image, dump = assemble(tmp_path, WRITES + POWER_OFF), tmp_path / "ram"
    done = run(lab_host("fwb"), ["pyvmm"], image, dump)
    assert done.status == 0, done.stderr.decode()
    assert dump.read_bytes()[OFFSET : OFFSET + len(WROTE)] == WROTE
    assert dump.stat().st_blocks * 512 < dump.stat().st_size / 2
