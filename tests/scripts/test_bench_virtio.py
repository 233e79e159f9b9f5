"""scripts/bench virtio turns the output of guests into rates and ratios."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from vmm.errors import HostError

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # As when a script is run: the modules beside it are imported by their plain names.
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("bench_virtio")


def said(bench: ModuleType, count: int) -> str:
    """Return the output of a guest whose devices do *count* operations in two seconds."""
    words = {"disk": "requests", "tap": "bytes"}
    return "".join(
        f"{load.command}: {count} {words[load.device]} in 2.000000 seconds\r\n"
        for load in bench.LOADS
    )


def test_ratios_are_those_of_pairs(bench: ModuleType) -> None:
    report = importlib.import_module("bench_report").Report()
    ours, theirs = ([said(bench, count) for count in each] for each in ((400, 9000), (100, 3000)))
    said_by = {"pyvmm": ours, "QEMU": theirs, "other": theirs}
    devices = {"pyvmm": {"disk", "tap"}, "QEMU": {"disk", "tap"}, "other": {"disk"}}
    bench.add(report, "group", said_by, devices)
    figures = {figure.name: figure for figure in report.figures}
    ratio = figures["4k random read, 32 at a time, pyvmm by QEMU"]
    assert (ratio.value, ratio.met) == (3.5, True)
    assert figures["4k random read, 32 at a time, pyvmm by other"].met is None
    assert figures["pyvmm: 4k random write, 32 at a time"].value == 2350
    assert figures["QEMU: TCP to the guest"].value == pytest.approx(775e-6)
    assert "other: TCP to the guest" not in figures
    assert figures["QEMU: 1M sequential read"].value == pytest.approx(775 * 1.048576)


def test_a_guest_that_stopped_half_way_is_an_error(bench: ModuleType) -> None:
    with pytest.raises(HostError, match=r"did not get to '1M sequential write'.*in 2"):
        bench.rates(said(bench, 1).rpartition("bench-disk")[0], {"disk"})


@pytest.mark.parametrize(
    ("program", "form"),
    [
        ("disk", "bench-disk %s %s %s %s: %llu requests in %.6f seconds"),
        ("net", "bench-net %s: %llu bytes in %.6f seconds"),
    ],
)
def test_the_programs_print_what_is_looked_for(bench: ModuleType, program: str, form: str) -> None:
    source = (SCRIPTS / f"bench_{program}.c").read_text()
    assert re.findall(rf'printf\("(bench-{program} %s.*?)\\n"', source) == [form]
    assert bench.rates(said(bench, 2), {"disk"})[bench.LOADS[0]] == 1
