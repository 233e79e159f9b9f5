"""The truth table of cacheable PFNMAP: a census on each kind of host, for real.

{legacy, mainline, rfc} x {FWB, no FWB} x {kinds of memory} x {flag, no flag}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

from vmm.errors import HostError, UserError
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.gh200 import BDF

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

PROFILES: Final = {
    "gh200": ("mainline", "FWB"),
    "gh200-nofwb": ("mainline", "no FWB"),
    "rfc": ("rfc", "FWB"),
    "rfc-nofwb": ("rfc", "no FWB"),
    "legacy-gh200": ("legacy", "FWB"),
    "legacy-gh200-nofwb": ("legacy", "no FWB"),
}
"""Each profile's kernel and CPU."""

TIMEOUT: Final = 300.0
"""Seconds that a census may take."""

Rows = list[dict[str, Any]]
Matrix = dict[str, Rows]


@dataclass(frozen=True)
class Difference:
    """A row that is not as expected."""

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
    """Take the census in a host of *profile*, one that is up or one of its own."""
    kept = Host.find(profile)
    with kept or Host.start(profile) as host:
        done = host.run(["python3", "-m", "vmm.passthrough.memslot_survey", BDF], timeout=TIMEOUT)
    if done.status != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise HostError(f"the census failed in lab host {profile}: {' '.join(last)}")
    rows: Rows = json.loads(done.stdout)
    return rows


def outcome(row: Mapping[str, Any]) -> str:
    """Return a row's result in a word or two: the memory type, or the errno."""
    return str(row["verdict"] if row["answer"] == "ok" else row["answer"])


def compare(found: Matrix, expected: Mapping[str, Mapping[str, Sequence[str]]]) -> list[Difference]:
    """Return where *found* differs from *expected*: profile -> memory -> [no flag, flag]."""
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


def load_expected(path: Path) -> dict[str, dict[str, list[str]]]:
    """Read an expectation file. Raises `UserError`."""
    try:
        expected: dict[str, dict[str, list[str]]] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--expect {path}: {error}", "it is JSON: tests/lab/matrix.json") from error
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


def _cells(found: Matrix) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of a table with a column for each host."""
    table = as_expected(found)
    kinds = dict.fromkeys(memory for rows in table.values() for memory in rows)
    head = ["memory", "flag", *(", ".join(PROFILES[profile]) for profile in table)]
    body = [
        [
            kind,
            "yes" if flag else "no",
            *(rows.get(kind, ["-", "-"])[flag] for rows in table.values()),
        ]
        for kind in kinds
        for flag in (0, 1)
    ]
    return head, body


def markdown(found: Matrix) -> str:
    """Return the table as Markdown."""
    head, body = _cells(found)
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


STYLE: Final = (
    "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{border:1px solid #bbb;padding:.4em .7em;text-align:left}"
    ".WB{background:#c8e6c9}.NC{background:#bbdefb}.Device{background:#ef9a9a}"
    ".EINVAL{background:#eee;color:#777}"
)


def html(found: Matrix) -> str:
    """Return the table as a self-contained page; each cell's evidence is its tooltip."""
    head, body = _cells(found)
    evidence = {
        (profile, row["memory"], row["flag"]): "\n".join(row["evidence"])
        for profile, rows in found.items()
        for row in rows
    }
    rows = []
    for memory, flag, *values in body:
        cells = [f"<th>{escape(memory)}</th><th>{flag}</th>"]
        for profile, value in zip(found, values, strict=True):
            why = escape(evidence.get((profile, memory, flag == "yes"), ""), quote=True)
            cells.append(f'<td class="{escape(value)}" title="{why}">{escape(value)}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>Cacheable PFNMAP, kernel by kernel</title><style>{STYLE}</style>"
        "<h1>What stage 2 gives, kernel by kernel</h1>"
        "<p>Each cell is a memory slot that was registered and proved by a guest of its own: "
        "the memory type found, or the errno of KVM_SET_USER_MEMORY_REGION. Point at a cell for "
        "the evidence. <b>Device</b> for region 4 is the hazard: the host maps it cacheable.</p>"
        f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>"
        f"{''.join(rows)}</table></html>\n"
    )


def write(outputs: Iterable[tuple[Path | None, str]]) -> None:
    """Write each text to its path, where there is one. Raises `UserError`."""
    for path, text in outputs:
        if path is not None:
            try:
                path.write_text(text)
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}") from error
