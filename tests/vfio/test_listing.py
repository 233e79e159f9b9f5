"""``pyvmm vfio``: what it lists, and where it runs."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from tests.vfio.pci_tree import AUDIO, DISK, GPU, Tree
from vmm.cli import vfio as command
from vmm.coherence import stage1
from vmm.errors import HostError
from vmm.vfio.binding import bind
from vmm.vfio.listing import DeviceEntry, RegionEntry, listing

RESOURCE = "0x10000000 0x10ffffff 0x40200\n0x8000000000 0x9fffffffff 0x14220c"


def lines(tree: Tree, *, ask: bool = True) -> list[str]:
    return [
        line
        for entry in listing(command.attribute, ask=ask, paths=tree.paths)
        for line in entry.lines()
    ]


def test_devices_are_listed_with_driver_group_and_bars(tree: Tree) -> None:
    tree.function(GPU, group=3, driver="nouveau", resource=RESOURCE)
    tree.function(AUDIO, group=3, class_code=0x040300)
    tree.function(DISK, driver="nvme", ids=(0x1B36, 0x10), class_code=0x010802)
    assert lines(tree) == [
        f"{GPU}  10de:2342  class 030200  nouveau, group 3 with {AUDIO}",
        "     0 BAR0               16 MiB",
        "     1 BAR1              128 GiB",
        f"{AUDIO}  10de:2342  class 040300  no driver, group 3 with {GPU}",
        f"{DISK}  1b36:0010  class 010802  nvme, no IOMMU",
    ]


def test_a_device_of_vfios_that_cannot_be_asked_says_why(tree: Tree) -> None:
    tree.driver("vfio-pci")
    tree.function(GPU, group=3, resource=RESOURCE)
    bind(GPU, paths=tree.paths)
    listed = lines(tree)
    assert "vfio-pci, bound by pyvmm, group 3" in listed[0]
    assert f"cannot open {tree.paths.dev}/vfio/vfio" in listed[-1]
    assert "cannot open" not in "\n".join(lines(tree, ask=False))


def test_regions_say_what_can_be_mapped_and_how() -> None:
    entry = DeviceEntry(
        bdf=GPU,
        vendor=0x10DE,
        device=0x2342,
        class_code=0x030200,
        driver="nvgrace_gpu_vfio_pci",
        vfio=True,
        iommu_group=1,
        shares_group_with=[],
        numa_node=None,
        bound_by_pyvmm=False,
        regions=[
            RegionEntry(0, "BAR0", 16 << 20, [(0, 0x4000), (0x8000, 0x1000)], "uncached"),
            RegionEntry(4, "BAR4", 96 << 30, [(0, 96 << 30)], "cacheable"),
            RegionEntry(7, "config", 4096, [], ""),
            RegionEntry(2, "BAR2", 32, [(0, 4096)], "uncached"),
        ],
    )
    assert entry.lines()[1:] == [
        "     0 BAR0               16 MiB  mappable: [0x0, 0x4000), [0x8000, 0x9000), uncached",
        "     4 BAR4               96 GiB  mappable, cacheable",
        "     7 config              4 KiB  read and write only",
        "     2 BAR2                 32 B  mappable, uncached",
    ]
    assert json.loads(json.dumps(entry.as_json()))["regions"][1]["attribute"] == "cacheable"


@pytest.mark.parametrize(
    ("says", "error", "attribute"),
    [
        (stage1.Says.DEVICE, None, "uncached"),
        (stage1.Says.NORMAL, None, "unknown"),
        (None, HostError("its memory cannot be switched on"), "unknown"),
    ],
)
def test_a_region_of_an_unknown_driver_is_measured_with_the_devices_memory_on(
    monkeypatch: pytest.MonkeyPatch,
    says: stage1.Says | None,
    error: HostError | None,
    attribute: str,
) -> None:
    diary: list[str] = []

    def look(_areas: object) -> list[stage1.Evidence]:
        diary.append("look")
        return [stage1.Evidence(says, "seen")] if says else []

    def enable_memory() -> None:
        diary.append("enable")
        if error:
            raise error

    monkeypatch.setattr(stage1, "look", look)
    mapping = nullcontext(SimpleNamespace(size=4096, host_address=0))
    device: Any = SimpleNamespace(driver="some-vfio-pci", enable_memory=enable_memory)
    region: Any = SimpleNamespace(index=0, map=lambda: mapping)
    assert command.attribute(device, region) == attribute
    assert diary == (["enable"] if error else ["enable", "look"])


# --- the command line -------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record where commands would have run, instead of running them."""
    asked: list[str] = []

    def run_there(host: str) -> int:
        asked.append(host)
        return 7

    monkeypatch.setattr(command, "run_there", run_there)
    return asked


@pytest.mark.parametrize(
    "arguments",
    [
        ["--host", "lab:vfio", "list"],
        ["list", "--host", "lab:vfio"],
        ["bind", GPU, "--host=lab:vfio"],
        ["--host=lab:vfio", "unbind", GPU],
    ],
)
def test_the_host_can_be_said_before_and_after_the_subcommand(
    elsewhere: list[str], arguments: list[str]
) -> None:
    done = CliRunner().invoke(command.vfio, arguments)
    assert done.exit_code == 7
    assert elsewhere == ["lab:vfio"]


def test_help_needs_no_host(elsewhere: list[str]) -> None:
    for arguments in (["--help"], ["--host", "lab", "bind", "--help"]):
        done = CliRunner().invoke(command.vfio, arguments)
        assert done.exit_code == 0
        assert "VFIO" in done.output
    assert elsewhere == []


def test_this_machines_devices_can_be_listed_by_anybody() -> None:
    done = CliRunner().invoke(command.vfio, ["list", "--json", "--no-open", "--host", "native"])
    assert done.exit_code == 0, done.output
    assert isinstance(json.loads(done.output), list)
