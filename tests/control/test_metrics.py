"""Counters as Prometheus's own reader has them, and as `pyvmm top` shows them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.control.counted import counters
from vmm.control import metrics
from vmm.control.top import screen


def read() -> dict[str, list[Any]]:
    text = metrics.text(counters(), "web", paused=True)
    assert text.content.startswith("text/plain; version=0.0.4")
    return {one.name: one.samples for one in text_string_to_metric_families(text.body)}


def value(name: str, **labels: str) -> float:
    found = [
        sample.value for sample in read()[name] if sample.labels == {"machine": "web", **labels}
    ]
    assert len(found) == 1, read()[name]
    return float(found[0])


def test_prometheus_reads_every_counter() -> None:
    assert value("pyvmm_exits", vcpu="0", reason="MMIO") == 100
    assert value("pyvmm_kvm_run_returns", vcpu="0") == 120
    assert value("pyvmm_kvm_stat", vcpu="0", stat="exits") == 1000
    assert value("pyvmm_mmio_accesses", at='UART "0"', access="store") == 60
    assert value("pyvmm_queue_chains", device="blk0", queue="0") == 10
    assert value("pyvmm_queue_bytes", device="blk0", queue="0", direction="written") == 40960
    assert value("pyvmm_interrupts", source="blk0") == 10
    assert value("pyvmm_paused") == 1
    assert value("pyvmm_observed_seconds") == 1.5


def look(scale: int) -> dict[str, Any]:
    status = {"name": "web", "state": "running", "uptime": 3725.9, "cpus": 2, "memory": 512 << 20}
    found: dict[str, Any] = json.loads(json.dumps(metrics.values(counters(scale))))
    return {"status": status, **found}


def test_top_shows_rates_between_two_looks() -> None:
    lines = screen(look(1), look(3), 2.0, (200, 50))
    text = "\n".join(lines)
    assert lines[0] == "web: running, up 1:02:05, 2 vCPUs, 512 MiB; 120 exits/s to pyvmm"
    assert lines[3].split() == ["0", "120", "50", "1000", "MMIO", "100,", "kick", "2"]
    assert lines[4].split() == ["1", "0", "0", "0"]
    assert 'UART "0"' in text
    assert "30        60        50" in text.replace("  30", "30")
    assert "blk0 queue 0                    10        0B       40K" in text
    assert "rng" not in text
    assert "interrupts/s: blk0 10" in text


def test_a_counter_that_fell_counts_from_zero() -> None:
    lines = screen(look(5), look(2), 1.0, (200, 50))
    assert lines[3].split()[1:4] == ["240", "100", "2000"]


def test_columns_stay_columns_under_long_names() -> None:
    before, now = look(1), look(2)
    for each in before, now:
        short = each["addresses"][0]
        each["addresses"] = [short, {**short, "name": "a" * 40}, {**short, "name": "b" * 99}]
    lines = screen(before, now, 1.0, (200, 50))
    heading = next(line for line in lines if line.startswith("DEVICE"))
    rows = [line for line in lines if line.startswith(("UART", "aaa", "bbb"))]
    assert len(rows) == 3
    assert {line.index(" 30 ") + 3 for line in rows} == {heading.index("LOADS/S") + len("LOADS/S")}
    assert {len(line) for line in rows} == {len(heading)}
    assert "b… " in rows[-1]


def test_a_line_that_is_cut_says_so() -> None:
    """Half a number would be another number."""
    line = screen(look(1), look(2), 1.0, (44, 24))[3]
    assert line.endswith("MMIO 1…")
    assert len(line) == 44


@pytest.mark.parametrize("size", [(1, 1), (20, 3), (80, 24)])
def test_top_fits_its_terminal(size: tuple[int, int]) -> None:
    lines = screen(look(1), look(2), 1.0, size)
    assert len(lines) <= size[1]
    assert max(map(len, lines)) <= size[0]
