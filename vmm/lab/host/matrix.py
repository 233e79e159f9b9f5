"""The truth table of cacheable PFNMAP, measured in a host of each kind, and what is expected.

{legacy, mainline, rfc} x {FWB, no FWB} x {kinds of memory} x {flag, no flag}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmm.errors import HostError, UserError
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.gh200 import BDF

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PROFILES: Final = {
    "gh200": ("mainline", "FWB"),
    "gh200-nofwb": ("mainline", "no FWB"),
    "rfc": ("rfc", "FWB"),
    "rfc-nofwb": ("rfc", "no FWB"),
    "legacy-gh200": ("legacy", "FWB"),
    "legacy-gh200-nofwb": ("legacy", "no FWB"),
}
"""Each profile's kernel and CPU."""

EXPECTATION: Final = Path(__file__).with_name("matrix.json")
"""Every profile's expected results: profile -> memory -> [without the flag, with it]."""

HAZARD: Final = "Device"
"""The memory type that legacy kernels give cacheable PFNMAP memory, without an error."""

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
    done = host.run(["python3", "-m", "vmm.passthrough.memslot_survey", BDF], timeout=TIMEOUT)
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


def _cells(found: Matrix) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of a table that has a column for each host."""
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
    """Return the table as Markdown, with what is a hazard in bold."""
    head, body = _cells(found)
    cells = [[f"**{cell}**" if cell == HAZARD else cell for cell in line] for line in body]
    lines = [head, ["---"] * len(head), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


STYLE: Final = (
    "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{border:1px solid #bbb;padding:.4em .7em;text-align:left}"
    ".forced-WB{background:#c8e6c9}.guest-decides{background:#fff59d}.NC{background:#bbdefb}"
    ".Device{background:#ef9a9a}"
    ".EINVAL{background:#eee;color:#777}"
)


def html(found: Matrix) -> str:
    """Return the table as a self-contained HTML page; a cell's tooltip is its evidence."""
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
            cells.append(
                f'<td class="{value.replace(" ", "-")}" title="{why}">{escape(value)}</td>'
            )
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
    """Write each text to its path, unless that is None. Raises `UserError`."""
    for path, text in outputs:
        if path is not None:
            try:
                path.write_text(text)
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}") from error
