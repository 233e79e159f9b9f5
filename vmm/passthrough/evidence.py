"""Collect what one host's KVM does with one region of a device, as text to be posted.

    Signed-off-by  who ran it, and vouches for the host that it names
    Checksum       SHA-256 of the facts, so that a change shows; it proves no identity

`read` takes such a text back out of a mail: quoted with "> ", and with its lines wrapped. So the
checksum is of the facts' JSON with sorted keys, in which each run of white space is one space.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any, Final

from vmm.coherence.host_report import HostReport
from vmm.coherence.policy import with_uapi
from vmm.errors import UserError, VmmError
from vmm.kvm.system import System
from vmm.passthrough.memslot_cases import ORDINARY, Regions
from vmm.passthrough.memslot_survey import survey
from vmm.passthrough.region_memory import RegionMemory
from vmm.vfio.device import open_device

if TYPE_CHECKING:
    from vmm.config.bar import BarConfig
    from vmm.vfio.device import VfioDevice

Facts = dict[str, Any]
"""Values of JSON."""

SAMPLES: Final = ("anonymous", "udmabuf (PFNMAP)")
"""The kinds of memory that stand beside the region, for comparison."""
FORMAT: Final = "pyvmm-evidence-1"
BEGIN: Final = "--- facts ---"
END: Final = "--- end of facts ---"
SIGNER: Final = re.compile(r"[^<>\n]+ <[^<>@\s]+@[^<>@\s]+>")
QUOTE: Final = re.compile(r"^(?:> ?)+", re.MULTILINE)
"""What mail programs put before each line of what they quote."""


def collect(config: BarConfig, uapi: str) -> Facts:
    """Return the facts of this host and of one region of its device. Raises `VmmError`.

    *uapi* is as for ``--uapi``. What the policy or the kernel refuses is a fact, and no error.
    """
    report = HostReport.run()
    with ExitStack() as owned:
        system = owned.enter_context(System.open())
        device = owned.enter_context(open_device(config.bdf))
        device.enable_memory()
        facts: Facts = {
            "format": FORMAT,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "kernel": {"release": platform.release(), "version": platform.version()},
            "uapi": uapi,
            **report.as_json(),
            "device": _device(device, config.region),
        }
        capability = with_uapi(report.coherence, uapi)
        cases = [case for case in ORDINARY if case.name in SAMPLES]
        cases.append(Regions(device, system, capability).case(config.region))
        # As in `pyvmm lab matrix`, on VMs that ask for nothing.
        facts["rows"] = [asdict(row) for row in survey(system, cases)]
        capability.prepare(system)
        try:
            with RegionMemory(config, device, system, capability) as region:
                facts["stage1"] = {
                    "attribute": region.attribute.stage1.value,
                    "because": region.attribute.because,
                }
                facts["verdicts"] = [verdict.as_json() for verdict in region.verify()]
        except VmmError as error:
            facts["refused"] = str(error)
    return facts


def _device(device: VfioDevice, region: int) -> Facts:
    function, info = device.function, device.region(region).info
    return {
        "bdf": function.bdf,
        "id": f"{function.vendor:04x}:{function.device:04x}",
        "driver": function.driver,
        "region": region,
        "size": info.size,
    }


# --- as text -----------------------------------------------------------------------------------


def checksum(facts: Facts) -> str:
    """Return the SHA-256 of *facts* in hexadecimal."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(" ".join(re.sub(r"\\n", " ", text).split()).encode()).hexdigest()


def check_signer(signer: str) -> str:
    """Return *signer* if it is ``NAME <ADDRESS>``. Raises `UserError`."""
    if not SIGNER.fullmatch(signer):
        raise UserError(
            f"--signed-off-by: {signer!r} is not NAME <ADDRESS>",
            'write --signed-off-by "Ada Lovelace <ada@example.org>"',
        )
    return signer


def _title(facts: Facts) -> str:
    return f"Cacheable device memory on {facts['host']['machine']}, Linux {facts['host']['kernel']}"


def _findings(facts: Facts) -> list[str]:
    """Return the kernel's generation and the verdicts, as lines."""
    coherence = facts["coherence"]
    said = facts.get("uapi", "auto")
    lines = [
        f"kernel's generation: {coherence['generation']}",
        *([f"run with --uapi {said}"] if said != "auto" else []),
        *(f"  because {sentence}" for sentence in coherence["evidence"]),
        "",
    ]
    if "refused" in facts:
        lines.append(f"pyvmm refuses the region: {facts['refused']}")
    for verdict in facts.get("verdicts", []):
        lines.append(f"verdict: {verdict['memory_type']}")
        lines += [f"  {sentence}" for sentence in verdict["evidence"]]
    return lines


def _table(facts: Facts) -> list[str]:
    """Return the kernel's answer to each slot, as lines."""
    return [
        f"{'memory':18} {'flag':5} {'slot':10} stage 2",
        *(
            f"{row['memory']:18} {'yes' if row['flag'] else 'no':5} {row['answer']:10} "
            f"{row['verdict']}"
            for row in facts["rows"]
        ),
    ]


def _what(device: Facts) -> str:
    name = f"region {device['region']} of {device['id']} ({device['driver']})"
    return f"{name}, {device['size'] >> 10} KiB"


def text(facts: Facts, signer: str) -> str:
    """Return *facts* as a text to be posted, signed off by *signer*."""
    return "\n".join(
        [
            _title(facts),
            _what(facts["device"]),
            "",
            *_findings(facts),
            "",
            *_table(facts),
            "",
            BEGIN,
            json.dumps(facts, indent=1),
            END,
            "",
            f"Checksum: sha256:{checksum(facts)}",
            f"Signed-off-by: {check_signer(signer)}",
            "",
        ]
    )


def read(posted: str, name: str) -> tuple[Facts, str]:
    """Return the facts in *posted*, a text or a mail called *name*, and who signed them off.

    Raises `UserError` that names the part at fault.
    """
    plain = QUOTE.sub("", posted)
    _, begin, rest = plain.partition(BEGIN)
    body, end, trailers = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{name}: there is no {(END if begin else BEGIN)!r}", _WHOLE)
    try:
        facts = json.loads(body, strict=False)
    except ValueError as error:
        raise UserError(f"{name}: the facts are no JSON: {error}", _WHOLE) from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UserError(f"{name}: its format is not {FORMAT}", "use the pyvmm that wrote it")
    said = re.search(r"^Checksum:\s+sha256:([0-9a-f]{64})\b", trailers, re.MULTILINE)
    signed = re.search(r"^Signed-off-by:\s+(\S[^\n]*)$", trailers, re.MULTILINE)
    if said is None or signed is None:
        missing = "Checksum" if said is None else "Signed-off-by"
        raise UserError(f"{name}: it has no {missing} line", _WHOLE)
    if said[1] != checksum(facts):
        raise UserError(f"{name}: the facts are not those of its checksum", _WHOLE)
    return facts, signed[1].strip()


_WHOLE: Final = "take the whole text, as `pyvmm evidence` wrote it"


# --- as a page ---------------------------------------------------------------------------------

STYLE: Final = (
    "body{font:15px sans-serif;margin:2em;max-width:60em}table{border-collapse:collapse}"
    "td,th{border:1px solid #bbb;padding:.4em .7em;text-align:left;vertical-align:top}"
    "pre{background:#f4f4f4;padding:1em;overflow:auto}"
)


def page(facts: Facts, signer: str) -> str:
    """Return *facts* as a self-contained HTML page."""
    head = ("memory", "flag", "slot", "stage 2", "evidence")
    cells = [
        (
            row["memory"],
            "yes" if row["flag"] else "no",
            row["answer"],
            row["verdict"],
            "; ".join(row["evidence"]),
        )
        for row in facts["rows"]
    ]
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in line)}</tr>" for line in cells
    )
    title, findings = escape(_title(facts)), escape("\n".join(_findings(facts)))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{STYLE}</style><h1>{title}</h1><p>{escape(_what(facts['device']))}</p>"
        f"<pre>{findings}</pre>"
        f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{body}</table>"
        f"<p>Signed-off-by: {escape(signer)}, {escape(facts['made_at'])}</p>"
        f"<details><summary>All facts</summary><pre>{escape(json.dumps(facts, indent=1))}</pre>"
        f"<p>sha256:{checksum(facts)}</p></details></html>\n"
    )
