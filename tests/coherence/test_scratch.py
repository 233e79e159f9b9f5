"""The scratch guest's code is what its comments say, and outcomes mean what they should."""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path

import pytest

from vmm.coherence.scratch import PROGRAMS, VECTOR, Fate, Outcome
from vmm.coherence.verdict import EXTERNAL_ABORT_ON_FETCH, MemoryType, judge

RAN = Outcome(Fate.RAN)
EFAULT = Outcome(Fate.FAILED, errno=errno.EFAULT)
ABORT = Outcome(Fate.ABORTED, esr=EXTERNAL_ABORT_ON_FETCH)


@pytest.mark.parametrize("name", [*PROGRAMS, "vector"])
def test_the_assembler_agrees_with_each_encoding(name: str, tmp_path: Path) -> None:
    program = PROGRAMS.get(name, VECTOR)
    if not shutil.which("aarch64-linux-gnu-as"):
        pytest.skip("aarch64-linux-gnu-as is not installed")
    source = "".join(f"{text}\n" for text, _ in program)
    out = tmp_path / "a.out"
    subprocess.run(["aarch64-linux-gnu-as", "-o", out, "-"], input=source, text=True, check=True)
    raw = tmp_path / "a.bin"
    subprocess.run(["aarch64-linux-gnu-objcopy", "-O", "binary", out, raw], check=True)
    assert raw.read_bytes() == b"".join(word.to_bytes(4, "little") for _, word in program)


@pytest.mark.parametrize(
    ("load", "zero", "fetch", "expected"),
    [
        (RAN, RAN, RAN, MemoryType.WRITE_BACK),
        (RAN, None, ABORT, MemoryType.NON_CACHEABLE),
        (EFAULT, None, None, MemoryType.DEVICE),
        (RAN, EFAULT, ABORT, MemoryType.DEVICE),
        (Outcome(Fate.ABORTED, esr=0x96000021), None, None, MemoryType.DEVICE),
        (Outcome(Fate.HUNG), None, None, MemoryType.UNDECIDABLE),
        (RAN, None, Outcome(Fate.ABORTED, esr=0x02000000), MemoryType.WRITE_BACK),
        (RAN, RAN, Outcome(Fate.ABORTED, esr=0x86000007), MemoryType.UNDECIDABLE),
        (RAN, None, Outcome(Fate.HUNG), MemoryType.UNDECIDABLE),
        (Outcome(Fate.FAILED, errno=errno.ENOSYS), None, None, MemoryType.UNDECIDABLE),
    ],
)
def test_a_verdict_follows_from_what_was_seen(
    load: Outcome, zero: Outcome | None, fetch: Outcome | None, expected: MemoryType
) -> None:
    verdict = judge(load, zero, fetch, None)
    assert verdict.memory_type is expected
    assert verdict.evidence
