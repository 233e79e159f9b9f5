"""What pyvmm posts of a host is what a C program without Python finds there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.lab.host.emulated_host import Host
from vmm.lab.host.gh200 import BDF
from vmm.lab.host.session import inside
from vmm.passthrough import evidence

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.lab, pytest.mark.kernels, pytest.mark.timeout(7200)]
SIGNER = "Ada Lovelace <ada@example.org>"
ANSWER = re.compile(r'# answer memory="(.*)" flag=(\d) slot=(\S+) type="(.*)"')
HAZARD = {"legacy-gh200"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile what scripts/kvm-selftest writes, for arm64, as its head says."""
    directory = tmp_path_factory.mktemp("selftest")
    source = directory / "cacheable_pfnmap.c"
    with source.open("w") as file:
        subprocess.run([sys.executable, ROOT / "scripts/kvm-selftest"], stdout=file, check=True)
    compiler = ["aarch64-linux-gnu-gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*compiler, "-o", directory / "program", source], check=True)
    return directory / "program"


@pytest.mark.parametrize("profile", ["gh200", "gh200-nofwb", "rfc", "posted", "legacy-gh200"])
def test_the_c_programs_answers_are_pyvmms(
    lab_host: Callable[[str], Host], profile: str, program: Path, tmp_path: Path
) -> None:
    host = lab_host(profile)
    words = ["--bar", f"{BDF}:4", "--signed-off-by", SIGNER, "--html", inside(tmp_path / "page")]
    done = host.run(["pyvmm", "evidence", "--host", "native", *words], timeout=120)
    assert done.status == 0, done.stderr.decode()
    facts, signer = evidence.read(done.stdout.decode(), profile)
    assert signer == SIGNER
    assert evidence.checksum(facts) in (tmp_path / "page").read_text()
    kept = host.run(["cat", "/proc/uptime"], timeout=60)
    assert kept.status == 0

    ran = host.run([inside(program), BDF, "4:memory"], timeout=120)
    tap = ran.stdout.decode()
    assert ran.status == (1 if profile in HAZARD else 0), tap
    assert ("not ok" in tap) is (profile in HAZARD), tap
    assert re.search(r"^1\.\.\d+$", tap, re.MULTILINE), tap
    answers = {(name, flag): (slot, kind) for name, flag, slot, kind in ANSWER.findall(tap)}
    said = {
        (row["memory"], str(int(row["flag"]))): (row["answer"], row["verdict"])
        for row in facts["rows"]
        if row["memory"] in ("anonymous", "region 4")
    }
    assert answers == said
    coherence = facts["coherence"]
    cpu = coherence["cpu"]
    for name in ("fwb", "dic", "idc"):
        assert f"{name}={int(cpu[name])}" in tap
    number = -1 if coherence["on_system"] is None else coherence["on_system"]
    assert f"capability_243_system={number} capability_243_vm={coherence['on_vm']} " in tap
