"""The policy: the decision for each kind of memory on each kind of host."""

from __future__ import annotations

import pytest

from tests.coherence.hosts import HOSTS
from vmm.coherence.capability import Generation, Support
from vmm.coherence.policy import (
    NVGRACE,
    Attribute,
    Cache,
    Decision,
    Map,
    Refuse,
    Stage1,
    Stage2,
    Trap,
    decide,
    decide_ram,
    region_attribute,
    with_uapi,
)
from vmm.errors import UserError
from vmm.kvm.vm import MemFlag

AUTO, REQUIRE, FORBID = Cache
MAP_WB, MAP_FLAG, MAP_NC, MAP_UNPROMISED, TRAP, REFUSE = (
    "map WB",
    "map WB with the flag",
    "map NC",
    "map, unpromised",
    "trap",
    "refuse",
)


def named(decision: Decision) -> str:
    match decision:
        case Trap():
            return TRAP
        case Refuse():
            return REFUSE
        case Map(MemFlag.WRITE_BACK, promise):
            assert promise.stage2 is Stage2.FORCED_WRITE_BACK
            return MAP_FLAG
        case Map(_, promise):
            return {
                Stage2.FORCED_WRITE_BACK: MAP_WB,
                Stage2.NON_CACHEABLE: MAP_NC,
                Stage2.UNPROMISED: MAP_UNPROMISED,
            }[promise.stage2]


TABLE = {
    # host              stage 1            auto            require   forbid
    ("legacy", Stage1.CACHEABLE): (REFUSE, REFUSE, TRAP),
    ("mainline", Stage1.CACHEABLE): (MAP_WB, MAP_WB, TRAP),
    ("mainline-nofwb", Stage1.CACHEABLE): (REFUSE, REFUSE, TRAP),
    ("rfc", Stage1.CACHEABLE): (MAP_FLAG, MAP_FLAG, TRAP),
    ("rfc-nofwb", Stage1.CACHEABLE): (REFUSE, REFUSE, TRAP),
    ("stray-flag", Stage1.CACHEABLE): (REFUSE, REFUSE, TRAP),
    ("contradicted", Stage1.CACHEABLE): (REFUSE, REFUSE, TRAP),
    ("unknown-answer", Stage1.CACHEABLE): (REFUSE, REFUSE, TRAP),
    ("legacy", Stage1.UNCACHED): (MAP_NC, REFUSE, MAP_NC),
    ("mainline", Stage1.UNCACHED): (MAP_NC, REFUSE, MAP_NC),
    ("rfc", Stage1.UNCACHED): (MAP_NC, REFUSE, MAP_NC),
    ("legacy", Stage1.UNKNOWN): (REFUSE, REFUSE, TRAP),
    ("mainline", Stage1.UNKNOWN): (MAP_UNPROMISED, REFUSE, TRAP),
    ("mainline-nofwb", Stage1.UNKNOWN): (MAP_UNPROMISED, REFUSE, TRAP),
    ("rfc", Stage1.UNKNOWN): (REFUSE, REFUSE, TRAP),
    ("contradicted", Stage1.UNKNOWN): (REFUSE, REFUSE, TRAP),
    ("unknown-answer", Stage1.UNKNOWN): (REFUSE, REFUSE, TRAP),
}


@pytest.mark.parametrize(("host", "stage1"), TABLE, ids=str)
@pytest.mark.parametrize("cache", Cache, ids=lambda cache: cache.value)
def test_the_ladder(host: str, stage1: Stage1, cache: Cache) -> None:
    decision = decide(Attribute(stage1, "said"), HOSTS[host], cache)
    assert named(decision) == TABLE[host, stage1][list(Cache).index(cache)]
    if isinstance(decision, Refuse):
        assert decision.remedy


@pytest.mark.parametrize("stage1", [Stage1.CACHEABLE, Stage1.UNKNOWN])
def test_a_kernel_whose_answers_contradict_is_refused_for_that(stage1: Stage1) -> None:
    decision = decide(Attribute(stage1, "said"), HOSTS["contradicted"], AUTO)
    assert isinstance(decision, Refuse)
    assert "slots show otherwise" in decision.because
    assert "lacks" not in decision.because
    assert "does not know" not in decision.because


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("cache", Cache)
def test_what_the_host_caches_is_never_mapped_without_a_promise(host: str, cache: Cache) -> None:
    decision = decide(Attribute(Stage1.CACHEABLE, "said"), HOSTS[host], cache)
    if isinstance(decision, Map):
        assert decision.promise.stage2 is Stage2.FORCED_WRITE_BACK
        assert HOSTS[host].support is Support.SUPPORTED


def test_a_refusal_names_the_capability_and_what_the_cpu_lacks() -> None:
    for host, lacking, there in (
        ("mainline-nofwb", "FEAT_S2FWB and CTR_EL0.DIC", "nothing"),
        ("mainline-nodic", "CTR_EL0.DIC", "FEAT_S2FWB"),
    ):
        decision = decide(Attribute(Stage1.CACHEABLE, "said"), HOSTS[host], Cache.AUTO)
        assert isinstance(decision, Refuse)
        assert "243" in decision.because
        assert lacking in decision.because
        assert there not in decision.because


@pytest.mark.parametrize(
    ("driver", "region", "stage1"),
    [
        ("nvgrace_gpu_vfio_pci", 4, Stage1.CACHEABLE),
        ("nvgrace-gpu-vfio-pci", 4, Stage1.CACHEABLE),
        (NVGRACE, 2, Stage1.UNCACHED),
        (NVGRACE, 0, Stage1.UNCACHED),
        ("vfio-pci", 4, Stage1.UNCACHED),
        ("mlx5_vfio_pci", 0, Stage1.UNKNOWN),
    ],
)
def test_the_driver_is_the_authority_on_stage_1(driver: str, region: int, stage1: Stage1) -> None:
    assert region_attribute(driver, region).stage1 is stage1


def test_ram_is_forced_write_back_where_the_cpu_has_fwb_whatever_243_says() -> None:
    for host, stage2 in {
        "legacy": Stage2.FORCED_WRITE_BACK,
        "legacy-nofwb": Stage2.GUEST_DECIDES,
        "mainline": Stage2.FORCED_WRITE_BACK,
        "mainline-nofwb": Stage2.GUEST_DECIDES,
        "mainline-nodic": Stage2.FORCED_WRITE_BACK,
        "rfc": Stage2.FORCED_WRITE_BACK,
    }.items():
        decision = decide_ram(HOSTS[host], write_back=False)
        assert isinstance(decision, Map)
        assert (decision.flags, decision.promise.stage2) == (MemFlag(0), stage2)
        assert "FWB" in decision.promise.because
        assert "243" not in decision.promise.because


def test_ram_is_asked_to_be_write_back_only_of_a_kernel_that_has_the_flag() -> None:
    decisions = {name: decide_ram(host, write_back=True) for name, host in HOSTS.items()}
    assert {name for name, made in decisions.items() if isinstance(made, Map)} == {"rfc"}


def test_nobodys_word_makes_a_promise_for_ram_or_sets_a_foreign_flag() -> None:
    """Bit 3 means something else there: the flag needs the capability."""
    told = with_uapi(HOSTS["stray-flag"], "rfc")
    plain = decide_ram(told, write_back=False)
    assert plain == decide_ram(HOSTS["stray-flag"], write_back=False)
    assert isinstance(plain, Map)
    assert plain.flags == MemFlag(0)
    flagged = decide_ram(told, write_back=True)
    assert isinstance(flagged, Refuse)
    assert "--uapi rfc" in flagged.because


def test_a_vendors_kernel_is_an_experiment_where_nothing_rules_it_out() -> None:
    told = with_uapi(HOSTS["legacy"], "vendor")
    decision = decide(Attribute(Stage1.CACHEABLE, "said"), told, Cache.AUTO)
    assert isinstance(decision, Map)
    assert (decision.flags, decision.promise.stage2) == (MemFlag(0), Stage2.FORCED_WRITE_BACK)
    assert "--uapi vendor" in decision.promise.because
    unknown = decide(Attribute(Stage1.UNKNOWN, "?"), told, Cache.AUTO)
    assert isinstance(unknown, Refuse)
    assert decide_ram(told, write_back=False) == decide_ram(HOSTS["legacy"], write_back=False)
    for host in ("mainline", "mainline-nofwb", "rfc", "legacy-nofwb"):
        with pytest.raises(UserError, match="--uapi vendor"):
            with_uapi(HOSTS[host], "vendor")


def test_saying_what_the_kernel_says_itself_changes_nothing() -> None:
    assert with_uapi(HOSTS["rfc"], "rfc") is HOSTS["rfc"]
    assert isinstance(decide_ram(with_uapi(HOSTS["rfc"], "rfc"), write_back=True), Map)


def test_people_who_know_their_kernel_are_believed() -> None:
    """A kernel from before the proposal's number was settled: the flag works, 243 is unknown."""
    told = with_uapi(HOSTS["stray-flag"], "rfc")
    assert (told.generation, told.support) == (Generation.RFC, Support.SUPPORTED)
    assert "--uapi rfc" in told.evidence[0]
    assert with_uapi(HOSTS["legacy"], "auto") is HOSTS["legacy"]


def test_people_are_not_believed_against_the_kernels_own_word() -> None:
    with pytest.raises(UserError, match="--uapi rfc"):
        with_uapi(HOSTS["mainline"], "rfc")


def test_saying_rfc_makes_no_flag_work_without_fwb() -> None:
    with pytest.raises(UserError, match=r"--uapi rfc: .* FEAT_S2FWB"):
        with_uapi(HOSTS["stray-flag-nofwb"], "rfc")


@pytest.mark.parametrize("uapi", ["auto", "mainline", "rfc"])
@pytest.mark.parametrize("stage1", [Stage1.CACHEABLE, Stage1.UNKNOWN])
@pytest.mark.parametrize("cache", [Cache.AUTO, Cache.REQUIRE])
def test_nobodys_word_has_a_legacy_kernel_map_what_may_be_cacheable(
    uapi: str, stage1: Stage1, cache: Cache
) -> None:
    told = with_uapi(HOSTS["legacy"], uapi)
    assert named(decide(Attribute(stage1, "said"), told, cache)) == REFUSE
