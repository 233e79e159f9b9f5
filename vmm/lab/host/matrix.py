"""The truth table of cacheable PFNMAP, measured in a host of each kind, and what is expected.

{mainline, rfc, posted, per VM, vendor, legacy} x {FWB, no FWB} x {memory} x {flag, no flag}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmm.errors import HostError, UserError
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.gh200 import BDF, DAX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KERNELS: Final = {
    "gh200": "mainline",
    "rfc": "rfc",
    "posted": "posted",
    "percap": "per VM",
    "vendor": "vendor",
    "legacy-gh200": "legacy",
}
PROFILES: Final = {
    f"{name}{suffix}": (kernel, cpu)
    for name, kernel in KERNELS.items()
    for suffix, cpu in (("", "FWB"), ("-nofwb", "no FWB"))
}
"""Each profile's kernel and CPU."""

EXPECTATION: Final = Path(__file__).with_name("matrix.json")
"""Every profile's expected results: profile -> memory -> [without the flag, with it]."""

TYPES: Final = frozenset({"forced WB", "guest decides", "NC", "Device", "mixed", "undecidable"})
"""The values of `vmm.coherence.verdict.MemoryType`."""
HAZARDS: Final = frozenset({"Device", "NC"})
"""Memory types that memory must not have at stage 2 if the host maps it cacheable."""

TIMEOUT: Final = 300.0
"""Seconds that a survey may take."""

Rows = list[dict[str, Any]]
"""The output of `vmm.passthrough.memslot_survey`: one row for each kind of memory and flag."""
Matrix = dict[str, Rows]
"""Each profile's rows."""


@dataclass(frozen=True)
class Difference:
    """One cell of the table that is not as expected."""

    profile: str
    memory: str
    flag: bool
    expected: str
    found: str

    def __str__(self) -> str:
        flag = "with the flag" if self.flag else "without the flag"
        return (
            f"{self.profile}, {self.memory}, {flag}: expected {self.expected}, found {self.found}"
        )


def measure(profile: str) -> Rows:
    """Survey memory slots in a host of *profile*: the one that is kept up, or a new one.

    Raises HostError if the host does not start or the survey fails.
    """
    kept = Host.find(profile)
    with kept or Host.start(profile) as host:
        return survey(host)


def survey(host: Host) -> Rows:
    """Survey memory slots in *host*. Raises HostError if the survey fails."""
    done = host.run(["python3", "-m", "vmm.passthrough.memslot_survey", BDF, DAX], timeout=TIMEOUT)
    if done.status != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise HostError(f"the survey failed in lab host {host.record.profile}: {' '.join(last)}")
    rows: Rows = json.loads(done.stdout)
    return rows


def outcome(row: Mapping[str, Any]) -> str:
    """Return a row's result in a word: the memory type, or the errno's name."""
    return str(row["verdict"] if row["answer"] == "ok" else row["answer"])


def compare(found: Matrix, expected: Mapping[str, Mapping[str, Sequence[str]]]) -> list[Difference]:
    """Return the cells of *found* that are not as in *expected*, a table like matrix.json."""
    differences = []
    for profile, rows in found.items():
        wanted = expected.get(profile, {})
        seen = set()
        for row in rows:
            memory, flag = row["memory"], row["flag"]
            seen.add(memory)
            want = wanted.get(memory, ["nothing known"] * 2)[flag]
            if outcome(row) != want:
                differences.append(Difference(profile, memory, flag, want, outcome(row)))
        differences += [
            Difference(profile, memory, False, wanted[memory][0], "no row")  # noqa: FBT003
            for memory in wanted
            if memory not in seen
        ]
    return differences


def load_expected(path: Path = EXPECTATION) -> dict[str, dict[str, list[str]]]:
    """Return the expectation in the JSON file *path*. Raises `UserError`."""
    try:
        expected: dict[str, dict[str, list[str]]] = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"--expect {path}: {error.strerror}", "name a JSON file") from error
    except ValueError as error:
        raise UserError(
            f"--expect {path}: {error}", "it is JSON in the form of vmm/lab/host/matrix.json"
        ) from error
    return expected


def as_expected(found: Matrix) -> dict[str, dict[str, list[str]]]:
    """Return *found* in the form of an expectation file."""
    table: dict[str, dict[str, list[str]]] = {}
    for profile, rows in found.items():
        for row in rows:
            table.setdefault(profile, {}).setdefault(row["memory"], ["", ""])[row["flag"]] = (
                outcome(row)
            )
    return table


# --- for people --------------------------------------------------------------------------------


def cell(plain: str, flagged: str) -> str:
    """Return one cell: what a slot gives, and with the Write-Back flag unless that is EINVAL."""
    if flagged in ("EINVAL", plain):
        return f"{plain}, flag too" if plain == flagged and plain in TYPES else plain
    return f"{plain}; flag: {flagged}"


def _hazardous(rows: Rows, memory: str) -> bool:
    """Return whether a slot of *memory*, which the host maps cacheable, is not so at stage 2."""
    return any(
        row["cacheable"] and row["verdict"] in HAZARDS for row in rows if row["memory"] == memory
    )


def _cells(found: Matrix) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of a table that has a column for each host."""
    table = as_expected(found)
    kinds = dict.fromkeys(memory for rows in table.values() for memory in rows)
    head = ["memory", *(", ".join(PROFILES[profile]) for profile in table)]
    body = [
        [kind, *(cell(*rows[kind]) if kind in rows else "-" for rows in table.values())]
        for kind in kinds
    ]
    return head, body


def markdown(found: Matrix) -> str:
    """Return the table as Markdown, with what is a hazard in bold."""
    head, body = _cells(found)
    lines = [head, ["---"] * len(head)]
    for memory, *values in body:
        marked = [
            f"**{value}**" if _hazardous(rows, memory) else value
            for value, rows in zip(values, found.values(), strict=True)
        ]
        lines.append([memory, *marked])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


STYLE: Final = (
    "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{border:1px solid #bbb;padding:.4em .7em;text-align:left}"
)
CELL_STYLE: Final = (
    ".forced-WB{background:#c8e6c9}.guest-decides{background:#fff59d}.NC{background:#bbdefb}"
    ".hazard{background:#ef9a9a}"
    ".EINVAL{background:#eee;color:#777}"
)


def html(found: Matrix) -> str:
    """Return the table as a self-contained HTML page; a cell's tooltip is its evidence."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>Cacheable PFNMAP, kernel by kernel</title><style>{STYLE}</style>"
        "<h1>What stage 2 gives, kernel by kernel</h1>"
        f"{html_table(found)}</html>\n"
    )


def html_table(found: Matrix) -> str:
    """Return the table and what it means as a part of an HTML page."""
    head, body = _cells(found)
    lines = []
    for memory, *values in body:
        cells = [f"<th>{escape(memory)}</th>"]
        for rows, value in zip(found.values(), values, strict=True):
            why = escape(_evidence(rows, memory), quote=True)
            kind = "hazard" if _hazardous(rows, memory) else value.partition(",")[0]
            kind = kind.partition(";")[0].replace(" ", "-")
            cells.append(f'<td class="{kind}" title="{why}">{escape(value)}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f"<style>{CELL_STYLE}</style>"
        "<p>Each cell is a memory slot that was registered and proved by a guest of its own: "
        "the memory type found, or the errno of KVM_SET_USER_MEMORY_REGION. Point at a cell for "
        "the evidence. Red is the hazard: the host maps the memory cacheable, stage 2 does not. "
        "With the Write-Back flag the answer is EINVAL, unless the cell says otherwise.</p>"
        f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>"
        f"{''.join(lines)}</table>"
    )


def _evidence(rows: Rows, memory: str) -> str:
    """Return the evidence of both slots of *memory*, as lines."""
    return "\n".join(
        f"{'with' if row['flag'] else 'without'} the flag: {sentence}"
        for row in rows
        if row["memory"] == memory
        for sentence in row["evidence"]
    )
