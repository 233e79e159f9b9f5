"""scripts/soak: what it calls a leak, a loss or a failure."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SLOT = 1 << 16


def module(name: str) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(f"{name}_script", str(SCRIPTS / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    return module("soak")


@pytest.fixture(scope="module")
def inside() -> ModuleType:
    return module("soak_inside.py")


def samples(*each: tuple[int, int, int]) -> list[dict[str, int]]:
    names = ("descriptors", "threads", "resident")
    return [dict(zip(names, values, strict=True)) for values in each]


def test_what_is_as_it_was_when_warm_is_no_leak(soak: ModuleType) -> None:
    grown = samples((9, 2, 1 << 20), (30, 9, 90 << 20), (9, 2, 9 << 20))
    assert soak.grown("boots", grown) == []


@pytest.mark.parametrize(
    ("last", "key"),
    [
        ((10, 2, 1 << 20), "descriptors grew from 9 to 10"),
        ((9, 3, 1 << 20), "threads grew from 2 to 3"),
        ((9, 2, 10 << 20), "resident memory grew from 1024 to 10240 KiB"),
    ],
)
def test_what_grew_is_a_leak(soak: ModuleType, last: tuple[int, int, int], key: str) -> None:
    assert soak.grown("boots", samples((9, 2, 1 << 20), last)) == [f"boots: {key}"]


def test_all_that_goes_wrong_is_told(soak: ModuleType) -> None:
    found: dict[str, Any] = {
        "boots": {"failures": ["7: HostError: no"], "samples": []},
        "load": {"failures": ["disk: round 3"], "rounds": 0, "samples": []},
        "left": ["process 5: pyvmm"],
    }
    assert soak.verdict(found) == [
        "a boot failed: 7: HostError: no",
        "load: disk: round 3",
        "load: the guest came to no round",
        "left behind: process 5: pyvmm",
    ]


def said(parts: list[bytes], *, rounds: int, wrong: int = 0) -> str:
    digests = [hashlib.md5(part, usedforsecurity=False).hexdigest() for part in parts]
    lines = [f"soak: slot {slot} {digest}" for slot, digest in enumerate(digests)]
    return "\n".join([*lines, f"soak: {rounds} rounds, {wrong} wrong"])


def test_a_disk_has_what_its_guest_wrote_last(inside: ModuleType) -> None:
    parts = [bytes([number]) * SLOT for number in (1, 2)]
    task = {"slots": 2, "slot": SLOT}
    text = "soak: slot 0 " + 32 * "0" + "\n" + said(parts, rounds=3)
    good = inside.judged(task, b"".join(parts), text, 0)
    assert good == {"rounds": 3, "bytes": 3 * SLOT, "failures": []}
    lost = inside.judged(task, parts[0] + bytes(SLOT), text, 0)
    assert lost["failures"] == ["slot 1 of the disk is not what the guest wrote"]


def test_a_machine_that_did_not_end_well_is_a_failure(inside: ModuleType) -> None:
    task = {"slots": 1, "slot": SLOT}
    found = inside.judged(task, bytes(SLOT), "soak: net: round 0\nKernel panic", 4)
    assert found["failures"][0] == "net: round 0"
    assert found["failures"][1].startswith("the machine ended with 4: ")


def test_a_machine_that_ends_is_no_measure(inside: ModuleType) -> None:
    """It has closed what it might have leaked."""
    assert not inside.under_load(b"soak: slot 0 aa\n")
    assert inside.under_load(b"soak: slot 0 aa\nsoak: slot 1 bb\n")
    assert not inside.under_load(b"soak: slot 1 bb\nsoak: 2 rounds, 0 wrong\n")


def test_a_process_is_looked_at(inside: ModuleType) -> None:
    found = inside.sample(os.getpid())
    assert found["descriptors"] > 2
    assert found["threads"] >= 1
    assert found["resident"] > 1 << 20
