"""The scratch guest's code matches its assembly, and outcomes give the right verdicts."""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path

import pytest

from vmm.coherence.scratch import POISON, PROGRAMS, VECTOR, Fate, Outcome
from vmm.coherence.verdict import MemoryType, Observations, judge

RAN = Outcome(Fate.RAN)
EFAULT = Outcome(Fate.FAILED, errno=errno.EFAULT)
HUNG = Outcome(Fate.HUNG)
ABORT = Outcome(Fate.ABORTED, esr=0x86000010)
ABORT_FROM_EL0 = Outcome(Fate.ABORTED, esr=0x82000010)
TRANSLATION = Outcome(Fate.ABORTED, esr=0x86000007)
ALIGNMENT = Outcome(Fate.ABORTED, esr=0x96000021)
UNDEFINED = Outcome(Fate.ABORTED, esr=0x02000000)


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
    ("seen", "expected"),
    [
        # memory, which may be written
        (Observations(RAN, RAN, RAN, RAN, RAN, fwb=True), MemoryType.FORCED_WRITE_BACK),
        (Observations(RAN, RAN, UNDEFINED, RAN, RAN), MemoryType.GUEST_DECIDES),  # DCZID_EL0.DZP
        (Observations(RAN, RAN, RAN, RAN, ABORT), MemoryType.NON_CACHEABLE),
        (Observations(RAN, EFAULT), MemoryType.DEVICE),
        (Observations(RAN, ALIGNMENT), MemoryType.DEVICE),
        (Observations(RAN, RAN, EFAULT), MemoryType.DEVICE),
        (Observations(RAN, HUNG), MemoryType.UNDECIDABLE),
        (Observations(RAN, RAN, RAN, EFAULT), MemoryType.UNDECIDABLE),
        (Observations(RAN, RAN, RAN, RAN, TRANSLATION), MemoryType.UNDECIDABLE),
        (Observations(RAN, RAN, RAN, RAN, HUNG), MemoryType.UNDECIDABLE),
        (Observations(RAN, Outcome(Fate.FAILED, errno=errno.ENOSYS)), MemoryType.UNDECIDABLE),
        # registers, which may not
        (Observations(fetch=ABORT, unaligned=RAN), MemoryType.NON_CACHEABLE),
        (Observations(fetch=ABORT_FROM_EL0, unaligned=RAN), MemoryType.NON_CACHEABLE),
        (Observations(fetch=ABORT, unaligned=EFAULT), MemoryType.DEVICE),
        (Observations(fetch=UNDEFINED, unaligned=RAN, fwb=True), MemoryType.FORCED_WRITE_BACK),
        (Observations(fetch=HUNG), MemoryType.UNDECIDABLE),
        # neither: what contradicts itself
        (Observations(fetch=RAN, unaligned=EFAULT), MemoryType.UNDECIDABLE),
        (Observations(), MemoryType.UNDECIDABLE),
    ],
)
def test_a_verdict_follows_from_what_was_seen(seen: Observations, expected: MemoryType) -> None:
    assert judge(seen).memory_type is expected


@pytest.mark.parametrize("seen", [Observations(EFAULT), Observations(fetch=EFAULT)])
def test_a_range_that_cannot_be_reached_is_not_taken_for_device_memory(seen: Observations) -> None:
    """KVM_RUN fails with EFAULT as well where a device's memory is off, or its mapping is gone."""
    verdict = judge(seen)
    assert verdict.memory_type is MemoryType.UNDECIDABLE
    assert "EFAULT" in verdict.evidence[0]


def test_the_guest_jumps_with_the_address_in_no_register_and_no_stack() -> None:
    """A range that is not known to be memory may hold any instruction, stores included."""
    last = [text for text, _ in PROGRAMS["jump"]].index("eret")
    written = {"x0": "x2", "x1": "x2"}
    for register, poison in written.items():
        assert f"mov {register}, {poison}" in [text for text, _ in PROGRAMS["jump"][:last]]
    assert POISON >> 39  # beyond what the page table maps
