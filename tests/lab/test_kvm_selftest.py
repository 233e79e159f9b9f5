"""The C program of scripts/kvm-selftest finds on each kernel what pyvmm finds there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.lab.host import matrix
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.gh200 import BDF
from vmm.lab.host.session import inside

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.lab, pytest.mark.kernels, pytest.mark.timeout(7200)]
on_gh200 = pytest.mark.profile("gh200")
Hosts = Callable[[str], Host]
EXPECTED = matrix.load_expected()
ANSWER = re.compile(r'# answer memory="(.*)" flag=(\d) slot="(.*)" type="(.*)"')
POINT = re.compile(r"^(ok|not ok) \d+ - (.*?)(?: # SKIP (.*))?$", re.MULTILINE)
UNKNOWN = "a kernel that does not know the capability"
CANNOT = "the VM cannot enable the capability"
UNTOLD = "the accesses do not tell the memory type"
PLAIN = "region 4 without a flag: refused, or forced Write-Back at stage 2"
NOT_SAID = "not said whether the host maps it cacheable or uncached"


def write(source: Path) -> None:
    with source.open("w") as file:
        subprocess.run([sys.executable, ROOT / "scripts/kvm-selftest"], stdout=file, check=True)


def build(source: Path) -> Path:
    """Compile *source* for arm64, as its head says."""
    program = source.with_suffix("")
    compiler = ["aarch64-linux-gnu-gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*compiler, "-o", program, source], check=True)
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program that scripts/kvm-selftest writes."""
    source = tmp_path_factory.mktemp("selftest") / "cacheable_pfnmap.c"
    write(source)
    return build(source)


def run(host: Host, program: Path, *words: str) -> tuple[int, str, str]:
    """Return exit status, standard output and standard error."""
    done = host.run([inside(program), *words], timeout=180)
    return done.status, done.stdout.decode(), done.stderr.decode()


def cells(tap: str) -> dict[str, list[str]]:
    """Return what became of each memory, without the flag and with it, in the matrix's words."""
    found: dict[str, list[str]] = {}
    for name, _, slot, kind in ANSWER.findall(tap):
        found.setdefault(name, []).append(kind if slot == "ok" else slot)
    return found


def points(tap: str) -> dict[str, str]:
    """Return each point's result: ok, not ok, or why it is SKIP."""
    found = POINT.findall(tap)
    assert f"\n1..{len(found)}\n" in tap
    assert all(result == "ok" for result, _, why in found if why)
    results = {point: why or result for result, point, why in found}
    assert len(results) == len(found)
    return results


@pytest.mark.parametrize("profile", matrix.PROFILES)
def test_on_each_kernel_its_answers_are_the_matrixs(
    lab_host: Hosts, profile: str, program: Path
) -> None:
    """Only the bug of kernels before 6.17 is a failure; what a kernel does not claim is SKIP."""
    host, (kernel, _) = lab_host(profile), matrix.PROFILES[profile]
    words = ("0:uncached", "2:uncached,memory", "4:cacheable,memory")
    status, tap, _ = run(host, program, BDF, *words)

    said = cells(tap)
    for name in ("anonymous", "udmabuf (PFNMAP)", "region 0", "region 2", "region 4"):
        assert said[name] == EXPECTED[profile][name], name
    assert said["region 4, VM asked"] == EXPECTED[profile]["region 4, VM asked"][:1]

    found = points(tap)
    for point, result in found.items():
        if "capability 243 is claimed" in point or point.startswith("KVM knows"):
            wanted = "ok" if kernel in ("mainline", "rfc", "per VM") else UNKNOWN
        elif "with capability 243 enabled" in point:
            wanted = "ok" if profile == "percap" else CANNOT
        else:
            wanted = "not ok" if kernel == "legacy" and point == PLAIN else "ok"
        assert result == wanted, point
    assert PLAIN in found
    assert status == (1 if kernel == "legacy" else 0)

    coherence = json.loads(host.run(["pyvmm", "probe", "--json"], timeout=120).stdout)["coherence"]
    for name in ("fwb", "dic", "idc"):
        assert f"{name}={int(coherence['cpu'][name])}" in tap
    number = -1 if coherence["on_system"] is None else coherence["on_system"]
    assert f"capability_243_system={number} capability_243_vm={coherence['on_vm']} " in tap


@on_gh200
def test_a_region_of_which_nothing_is_said_is_shown_and_not_judged(
    lab_host: Hosts, program: Path
) -> None:
    status, tap, _ = run(lab_host("gh200"), program, BDF, "4", "2:memory")
    assert status == 0, tap
    for name in ("region 2", "region 4"):
        assert cells(tap)[name] == EXPECTED["gh200"][name]
    told = [result for point, result in points(tap).items() if point.startswith("region")]
    assert told == [NOT_SAID] * 6


@on_gh200
@pytest.mark.parametrize("word", ["2:cacheable,memory", "4:uncached"])
def test_a_memory_type_that_is_not_the_hosts_is_a_failure(
    lab_host: Hosts, program: Path, word: str
) -> None:
    """What is stated is wrong here; the point is a kernel's that had mapped the region so."""
    status, tap, _ = run(lab_host("gh200"), program, BDF, word)
    failed = [point for point, result in points(tap).items() if result == "not ok"]
    assert status == 1
    assert any(point.startswith(f"region {word[0]} without a flag") for point in failed)


def changed(source: Path, old: str, new: str) -> Path:
    """Build the program with *new* in the place of *old*."""
    write(source)
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new))
    return build(source)


@on_gh200
def test_an_access_that_reaches_nothing_is_no_pass_and_no_failure(
    lab_host: Hosts, tmp_path: Path
) -> None:
    """With the function's memory space off, KVM_RUN fails on a correct kernel as well."""
    program = changed(tmp_path / "off.c", "command |= 2;", "command &= ~2;")
    status, tap, _ = run(lab_host("gh200"), program, BDF, "0:uncached")
    assert "executing from it fails KVM_RUN with EFAULT" in tap
    assert cells(tap)["region 0"][0] == "undecidable"
    assert points(tap)["region 0 without a flag: a slot, and not Write-Back at stage 2"] == UNTOLD
    assert status == 0


@on_gh200
def test_a_last_page_of_another_type_is_a_failure(lab_host: Hosts, tmp_path: Path) -> None:
    """A page of region 2, which is Normal-NC, lies over the last one of region 4."""
    failed = 'fail("mmap of the region");'
    page = "memory.host + memory.size - page_size, page_size, PROT_READ | PROT_WRITE"
    over = f"mmap({page}, MAP_SHARED | MAP_FIXED, device, 2LL << 40);"
    program = changed(tmp_path / "over.c", failed, f"{failed}\n\t{over}")
    status, tap, _ = run(lab_host("gh200"), program, BDF, "4:cacheable")
    assert cells(tap)["region 4"][0] == "mixed"
    assert points(tap)[PLAIN] == "not ok"
    assert status == 1


@on_gh200
def test_a_cacheable_region_has_to_be_forced_write_back(lab_host: Hosts, tmp_path: Path) -> None:
    """Without FEAT_S2FWB, what maps it Write-Back leaves it to the guest. Memory may be so."""
    program = changed(tmp_path / "fwb.c", "!!(value >> 40 & 15)", "0")
    status, tap, _ = run(lab_host("gh200"), program, BDF, "4:cacheable,memory")
    results = points(tap)
    assert results[PLAIN] == "not ok"
    assert results["udmabuf (PFNMAP) without a flag: refused, or cacheable at stage 2"] == "ok"
    assert results["capability 243 is claimed only with FWB and DIC"] == "not ok"
    assert status == 1


@on_gh200
def test_a_udmabuf_that_is_not_pfnmap_shows_nothing(lab_host: Hosts, tmp_path: Path) -> None:
    """As on older kernels; here, a mapping of the memfd itself."""
    program = changed(tmp_path / "memfd.c", "MAP_SHARED, buffer, 0", "MAP_SHARED, request.memfd, 0")
    status, tap, _ = run(lab_host("gh200"), program)
    (result,) = (result for point, result in points(tap).items() if "udmabuf" in point)
    assert "not PFNMAP" in result
    assert status == 0


@on_gh200
def test_what_was_written_is_put_back(lab_host: Hosts, tmp_path: Path) -> None:
    first, last = "*(long *)memory.host", "*(long *)(memory.host + memory.size - page_size)"
    call = "rows(&memory, answers);"
    look = f"""{{
        long first = {first}, last = {last};
        {call}
        printf("# as before: %d %d\\n", first == {first}, last == {last});
    }}"""
    program = changed(tmp_path / "left.c", call, look)
    _, tap, _ = run(lab_host("gh200"), program, BDF, "4:cacheable,memory")
    assert tap.count("planting an instruction works") == 6  # two pages of three memories
    assert re.findall("# as before: (.*)", tap) == ["1 1"] * 3


@on_gh200
def test_what_is_taken_has_to_be_claimed(lab_host: Hosts, tmp_path: Path) -> None:
    """A kernel that says 0 of what it takes is wrong."""
    asked = "answers->vm = check(vm, CACHEABLE_PFNMAP_SUPPORTED)"
    program = changed(tmp_path / "unclaimed.c", asked, "answers->vm = 0")
    status, tap, _ = run(lab_host("gh200"), program, BDF, "4:cacheable")
    claims = [result for point, result in points(tap).items() if point.endswith("is claimed")]
    assert claims == ["not ok", "not ok"]
    assert status == 1


@on_gh200
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((BDF,), "which of its regions?"),
        ((BDF, "four"), "four: a region is NUMBER"),
        ((BDF, "-4"), "-4: a region is NUMBER"),
        ((BDF, "4294967300"), "4294967300: a region is NUMBER"),
        ((BDF, "4memory"), "4memory: a region is NUMBER"),
        ((BDF, "4:"), "4:: a word is cacheable, uncached or memory"),
        ((BDF, "4:cacheable,"), "a word is cacheable, uncached or memory"),
        ((BDF, "4:cache"), "a word is cacheable, uncached or memory"),
        ((BDF, "0:uncached", "4:cacheable,uncached"), "not both"),
        ((BDF, "0:uncached", "1:uncached"), "1:uncached: the device has no such region"),
        ((BDF, "7:uncached"), "7:uncached: the region cannot be mapped"),
    ],
)
def test_a_bad_argument_is_one_line_before_anything_is_asked(
    lab_host: Hosts, program: Path, words: tuple[str, ...], said: str
) -> None:
    status, tap, errors = run(lab_host("gh200"), program, *words)
    assert status == 2
    (line,) = errors.splitlines()
    assert line.startswith("cacheable_pfnmap: ")
    assert said in line
    assert "answer" not in tap
