"""The page about a run: what it says is what the trace says."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from vmm._native import ffi, lib
from vmm.address_range import AddressRange
from vmm.cli.report import report
from vmm.coherence.ledger import Entry
from vmm.coherence.policy import Attribute, Promise, Stage1, Stage2
from vmm.errors import UserError
from vmm.memory import Backing
from vmm.observe import plot
from vmm.observe.names import NOTHING, Named, disjoint, find
from vmm.observe.recording import Phase, read
from vmm.observe.trace import Trace

US = 1000
ENTRY = Entry(
    name="RAM <0>",
    base=0x4000_0000,
    size=1 << 29,
    backing=Backing.ANONYMOUS,
    attribute=Attribute(Stage1.CACHEABLE, "it is ours"),
    promise=Promise(Stage2.FORCED_WRITE_BACK, "FWB"),
    slot=0,
)


def fail(error: OSError) -> None:
    raise AssertionError(error)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Write a trace of three exits, a chain, an interrupt, phases, KVM's counters and a ledger."""
    path = tmp_path / "trace.json"
    with path.open("wb", buffering=0) as file:
        made = Trace(file.fileno(), 0, fail)
        made.names = lambda: [Named(AddressRange(0x1000, 0x100), "uart")]
        vcpu, queue = made.source("vcpu0", 16), made.source("disk0 queue 0", 16)
        interrupt = made.source("disk0 interrupt", 16)
        mmio = {"kind": lib.PYVMM_RECORD_EXIT, "reason": lib.KVM_EXIT_MMIO, "size": 1}
        for begin, took, address in ((10, 2, 0x1000), (20, 4, 0x1004), (90, 1, 0x5000)):
            times = {"begin": begin * US, "end": (begin + took) * US, "address": address}
            lib.pyvmm_trace_put(vcpu, ffi.new("struct pyvmm_record *", {**mmio, **times}))
        chain = {"kind": lib.PYVMM_RECORD_CHAIN, "begin": 30 * US, "end": 80 * US, "size": 4096}
        lib.pyvmm_trace_put(queue, ffi.new("struct pyvmm_record *", {**chain, "value": 16}))
        raised = {"kind": lib.PYVMM_RECORD_INTERRUPT, "begin": 80 * US, "end": 80 * US}
        lib.pyvmm_trace_put(interrupt, ffi.new("struct pyvmm_record *", raised))
        made.span("parts are opened", 0, 10 * US)
        made.mark("KVM's counters", {"vcpu0": {"exits": 77, "mmio_exit_user": 3}})
        made.mark("ledger", {"ranges": [ENTRY.as_json()]})
        made.mark("init starts")
        made.close()
    return path


def test_a_recording_is_what_was_traced(trace: Path) -> None:
    found = read(trace)
    exits = found.exits["vcpu0"]
    assert {name: len(each.times) for name, each in exits.items()} == {
        "uart load": 2,
        f"{NOTHING} load": 1,
    }
    assert list(exits["uart load"].durations) == pytest.approx([2e-6, 4e-6])
    assert list(found.chains["disk0 queue 0"].durations) == pytest.approx([50e-6])
    assert (found.readable, found.written) == ({"disk0 queue 0": 16}, {"disk0 queue 0": 4096})
    assert found.interrupts == {"disk0 interrupt": 1}
    assert [phase.name for phase in found.phases] == ["parts are opened"]
    assert [word.name for word in found.words] == ["init starts"]
    assert found.kvm == [{"vcpu0": {"exits": 77, "mmio_exit_user": 3}}]
    assert [Entry.from_json(entry) for entry in found.ledger] == [ENTRY]


def test_a_trace_that_was_cut_is_read_as_far_as_it_goes(trace: Path) -> None:
    whole = trace.read_bytes()
    trace.write_bytes(whole[: whole.index(b"disk0 interrupt")])
    assert not read(trace).interrupts


class Page(HTMLParser):
    """The text of a page's cells, and what it would fetch from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.fetched: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_cell = tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1].append(data)
            self._in_cell = False


def test_a_page_has_all_of_it_and_fetches_nothing(trace: Path, tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.write_text(json.dumps({"event": "ended", "how": "<b>", "timestamp": "x" * 30}) + "\n")
    done = CliRunner().invoke(report, [str(trace), "--events", str(events)])
    assert done.exit_code == 0, done.output
    text = trace.with_suffix(".html").read_text()
    page = Page(text)
    assert not page.fetched
    assert ["uart load", "2", "0.0", "3.0", "4.0", "4.0"] in page.rows
    assert ["vcpu0", "3", "77", "3"] in page.rows
    assert ["disk0 interrupt", "1"] in page.rows
    assert any(row[1:] == ["ended", "how <b>"] for row in page.rows)
    assert f"RAM &lt;0&gt;: {Stage2.FORCED_WRITE_BACK.value}" in text
    for picture in text.split("<svg ")[1:]:
        ET.fromstring("<svg " + picture.split("</svg>")[0] + "</svg>")  # noqa: S314  (it is ours)


@pytest.mark.parametrize("text", ["", "{}", '[\n{"ph":"X"}\n', "\x7fELF\n"])
def test_what_is_no_trace_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other"
    path.write_text(text)
    with pytest.raises(UserError, match="not a trace of pyvmm's"):
        read(path)


def test_bars_are_as_high_as_there_are_exits() -> None:
    picture = plot.stacked({"a": [0.05, 0.06], "b": [0.05]}, 10.0)
    tree = ET.fromstring(picture)  # noqa: S314  (it is ours)
    bars = [each for each in tree.iter() if each.tag.endswith("rect") and len(each)]
    heights = {bar[0].text: float(bar.attrib["height"]) for bar in bars}
    assert set(heights) == {"a: 2", "b: 1"}
    assert heights["a: 2"] == pytest.approx(2 * heights["b: 1"])


def test_phases_are_where_their_time_is() -> None:
    picture = plot.phases([Phase("early", 0, 2.5), Phase("late", 2.5, 7.5)], [], 10.0)
    tree = ET.fromstring(picture)  # noqa: S314  (it is ours)
    early, late = [each.attrib for each in tree.iter() if each.tag.endswith("rect")]
    assert float(late["width"]) == pytest.approx(3 * float(early["width"]))
    assert float(late["x"]) == pytest.approx(float(early["x"]) + float(early["width"]))


@pytest.mark.parametrize(
    ("end", "expected"),
    [(0.0, [0.0]), (10.0, [float(n) for n in range(11)]), (25.0, [0.0, 5, 10, 15, 20, 25])],
)
def test_ticks_are_round(end: float, expected: list[float]) -> None:
    assert plot.ticks(end) == expected


def test_the_smallest_range_names_an_address() -> None:
    named = disjoint([
        Named(AddressRange(0x1000, 0x1000), "window"),
        Named(AddressRange(0x1400, 0x200), "BAR"),
    ])  # fmt: skip
    assert [(each.addresses.base, each.name) for each in named] == [
        (0x1000, "window"),
        (0x1400, "BAR"),
        (0x1600, "window"),
    ]
    assert find(named, 0x15FF) == "BAR"
    assert find(named, 0x1600) == "window"
    assert find(named, 0x2000) == NOTHING
