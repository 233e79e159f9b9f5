"""Evidence survives a mail, and no change of it goes unnoticed."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import UserError
from vmm.passthrough import evidence

SIGNER = "Ada Lovelace <ada@example.org>"
SENTENCE = "a slot of a udmabuf is taken without flag bit 3, and refused with it " * 3
FACTS: dict[str, Any] = {
    "format": evidence.FORMAT,
    "made_at": "2026-11-28T00:00:00+00:00",
    "host": {"machine": "aarch64", "kernel": "7.3"},
    "coherence": {"generation": "mainline", "evidence": [SENTENCE.strip(), "a <b> & c"]},
    "device": {"region": 4, "id": "10de:2342", "driver": "nvgrace", "size": 1 << 29},
    "verdicts": [{"memory_type": "forced WB", "evidence": ["it runs"]}],
    "rows": [
        {
            "memory": "region 4",
            "flag": False,
            "answer": "ok",
            "verdict": "forced WB",
            "evidence": ["<script>"],
        }
    ],
}
TEXT = evidence.text(FACTS, SIGNER)


def mailed(text: str, width: int = 76, quote: str = "> ") -> str:
    """Return *text* as a mail program quotes it: wrapped at spaces, each line marked."""
    lines = [
        part
        for line in text.splitlines()
        for part in (
            textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
        )
    ]
    return "".join(f"{quote}{line}\n" for line in lines)


def test_a_text_tells_what_uapi_said() -> None:
    said = evidence.text({**FACTS, "uapi": "vendor"}, SIGNER)
    assert "run with --uapi vendor" in said
    assert "run with --uapi" not in evidence.text({**FACTS, "uapi": "auto"}, SIGNER)


def test_a_text_is_read_back() -> None:
    assert evidence.read(TEXT, "it") == (FACTS, SIGNER)


@pytest.mark.parametrize("quote", ["", "> ", ">> ", "> > "])
def test_a_text_is_read_out_of_a_mail(quote: str) -> None:
    facts, signer = evidence.read(f"Hello,\n\n{mailed(TEXT, quote=quote)}\nBye\n", "mail")
    assert signer == SIGNER
    assert evidence.checksum(facts) == evidence.checksum(FACTS)


@given(st.data())
def test_a_changed_fact_is_noticed(data: st.DataObject) -> None:
    start = TEXT.index(evidence.BEGIN)
    at = data.draw(st.integers(start, TEXT.index(evidence.END) - 1))
    new = data.draw(st.sampled_from('x7{"'))
    changed = TEXT[:at] + new + TEXT[at + 1 :]
    try:
        facts, _ = evidence.read(changed, "it")
    except UserError:
        return
    assert facts == FACTS  # white space, or the same character


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (evidence.BEGIN, "", "there is no '--- facts ---'"),
        (evidence.END, "", "there is no '--- end of facts ---'"),
        ("Checksum: sha256", "sum", "no Checksum line"),
        ("Signed-off-by", "By", "no Signed-off-by line"),
        ('"region": 4', '"region": 2', "not those of its checksum"),
        ('"forced WB"', '"Device"', "not those of its checksum"),
        ("pyvmm-evidence-1", "pyvmm-evidence-2", "its format is not pyvmm-evidence-1"),
        ('"rows": [', '"rows": [[', "the facts are no JSON"),
    ],
)
def test_the_part_at_fault_is_named(old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(UserError, match=said):
        evidence.read(TEXT.replace(old, new), "it")


@pytest.mark.parametrize("signer", ["", "Ada", "ada@example.org", "Ada <ada>", "Ada <a@b>\nX"])
def test_who_signs_off_has_a_name_and_an_address(signer: str) -> None:
    with pytest.raises(UserError, match="--signed-off-by"):
        evidence.text(FACTS, signer)


def test_a_page_has_all_and_runs_nothing() -> None:
    page = evidence.page(FACTS, SIGNER)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert evidence.checksum(FACTS) in page
    assert json.dumps(FACTS["made_at"])[1:-1] in page
    assert "src=" not in page
