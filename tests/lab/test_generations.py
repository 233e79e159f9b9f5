"""Each design of the interface is told by evidence, and each promise rests on it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from vmm.errors import EXIT_HOST, EXIT_USER
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.gh200 import BDF, DAX
from vmm.lab.host.session import Completed
from vmm.passthrough import evidence

pytestmark = [pytest.mark.lab, pytest.mark.kernels, pytest.mark.timeout(7200)]
Hosts = Callable[[str], Host]


def pyvmm(host: Host, *words: str) -> Completed:
    return host.run(["pyvmm", words[0], "--host", "native", *words[1:]], timeout=120)


@pytest.mark.parametrize(
    ("profile", "generation", "evidence"),
    [
        ("gh200", "mainline", "taken without flag bit 3, and refused with it"),
        ("gh200-nofwb", "mainline", "lacks FEAT_S2FWB and CTR_EL0.DIC"),
        ("rfc", "rfc", "refused without flag bit 3, and taken with it"),
        ("posted", "rfc", "no capability 243 claims flag bit 3, but it works as proposed"),
        ("percap", "per VM", "each VM has to ask"),
        ("vendor", "legacy", "taken without flag bit 3, and refused with it"),
        ("legacy-gh200", "legacy", "taken without flag bit 3, and refused with it"),
    ],
)
def test_a_kernels_generation_goes_by_what_it_answers(
    lab_host: Hosts, profile: str, generation: str, evidence: str
) -> None:
    done = pyvmm(lab_host(profile), "probe", "--json")
    assert done.status == 0, done.stderr.decode()
    found = json.loads(done.stdout)["coherence"]
    assert found["generation"] == generation
    assert any(evidence in sentence for sentence in found["evidence"]), found["evidence"]


@pytest.mark.parametrize(
    ("profile", "words", "said"),
    [
        ("posted", (), "stage 2: forced WB"),
        ("percap", (), "stage 2: forced WB"),
        ("vendor", ("--uapi", "vendor"), "stage 2: forced WB"),
    ],
)
def test_cacheable_memory_is_mapped_by_each_design(
    lab_host: Hosts, profile: str, words: tuple[str, ...], said: str
) -> None:
    done = pyvmm(lab_host(profile), "verify", "--bar", f"{BDF}:4", *words)
    assert done.status == 0, done.stderr.decode()
    assert said in done.stdout.decode()


@pytest.mark.parametrize(
    ("profile", "words", "status", "said"),
    [
        ("vendor", (), EXIT_HOST, "does not know KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED"),
        (
            "legacy-gh200",
            ("--uapi", "vendor"),
            EXIT_HOST,
            "not map it Write-Back at stage 2: Device",
        ),
        ("gh200", ("--uapi", "vendor"), EXIT_USER, "this kernel knows capability 243"),
        ("vendor-nofwb", ("--uapi", "vendor"), EXIT_USER, "not known to have FEAT_S2FWB"),
        ("percap-nofwb", (), EXIT_HOST, "lacks FEAT_S2FWB and CTR_EL0.DIC"),
    ],
)
def test_what_is_not_proved_is_refused_in_a_line(
    lab_host: Hosts, profile: str, words: tuple[str, ...], status: int, said: str
) -> None:
    done = pyvmm(lab_host(profile), "map", "--bar", f"{BDF}:4", *words)
    assert done.status == status
    assert said in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


@pytest.mark.profile("posted")
def test_the_flag_on_ram_needs_a_proof_and_a_udmabuf_is_one(lab_host: Hosts) -> None:
    done = pyvmm(lab_host("posted"), "map", "--memory-write-back", "--json")
    assert done.status == 0, done.stderr.decode()
    (ram,) = (entry for entry in json.loads(done.stdout) if entry["name"] == "RAM")
    assert (ram["flags"], ram["stage2"]) == (1 << 3, "forced Write-Back")


@pytest.mark.profile("percap")
def test_evidence_has_the_rows_of_vms_that_ask_for_nothing(lab_host: Hosts) -> None:
    """The table's rows are; what was promised and proved is of a VM that asked."""
    words = ["--bar", f"{BDF}:4", "--signed-off-by", "Ada Lovelace <ada@example.org>"]
    done = pyvmm(lab_host("percap"), "evidence", *words)
    assert done.status == 0, done.stderr.decode()
    facts, _ = evidence.read(done.stdout.decode(), "percap")
    rows = [row["answer"] for row in facts["rows"] if row["memory"] == "region 4"]
    assert (rows, facts["uapi"]) == (["EINVAL", "EINVAL"], "auto")
    assert [verdict["memory_type"] for verdict in facts["verdicts"]] == ["forced WB"]


@pytest.mark.parametrize("profile", ["gh200", "gh200-nofwb", "legacy-gh200"])
def test_a_dax_file_is_given_only_where_it_is_cacheable(lab_host: Hosts, profile: str) -> None:
    host = lab_host(profile)
    done = pyvmm(host, "map", "--pmem", f"{DAX}/memory,size=2M", "--json")
    if "legacy" in profile:
        assert done.status == EXIT_HOST
        assert b"uses DAX" in done.stderr
        assert b"Device" in done.stderr
        assert done.stderr.count(b"\n") == 1
    else:
        assert done.status == 0, done.stderr.decode()
        (pmem,) = (entry for entry in json.loads(done.stdout) if entry["name"] == "pmem")
        assert pmem["stage1_because"].startswith("a DAX file")
    # Allocated, never written: its pages were the kernel's zeroes, which any kernel maps cacheable.
    prepare = f"fallocate -l 2M {DAX}/allocated && truncate -s 2M {DAX}/hole && cat {DAX}/allocated"
    assert host.run(["sh", "-c", f"{prepare} >/dev/null"], timeout=60).status == 0
    for name, options, said in (
        ("allocated", "", b"Device"),
        ("memory", ",ro", b"Device"),
        ("allocated", ",ro", b""),
        ("hole", ",ro", b"no page of it was ever written"),
    ):
        done = pyvmm(host, "map", "--pmem", f"{DAX}/{name}{options}", "--json")
        proves = b"was ever written" not in said
        refused = "legacy" in profile or not proves
        assert (done.status == EXIT_HOST) is refused, (name, options, done.stderr)
        assert said in done.stderr or not refused
    plain = pyvmm(host, "map", "--pmem", "/run/tmp/memory,size=2M", "--json")
    assert plain.status == 0, plain.stderr.decode()
