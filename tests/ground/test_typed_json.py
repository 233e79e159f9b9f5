"""JSON that is read back names the member at fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.state.golden import DIRECTORY, golden, names
from vmm.errors import UserError
from vmm.state.host_description import HostDescription

GOOD = DIRECTORY / "gh200.json"


def changed(path: Path, *where: str | int, to: Any) -> Path:
    """Write a description with the member at *where* changed into *path*."""
    value = json.loads(GOOD.read_text())
    at = value
    for key in where[:-1]:
        at = at[key]
    at[where[-1]] = to
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("profile", names())
def test_a_description_is_read_as_it_was_written(profile: str) -> None:
    assert golden(profile).text() == (DIRECTORY / f"{profile}.json").read_text()


@pytest.mark.parametrize(
    ("where", "to", "complaint"),
    [
        (("page_size",), "4096", 'page_size: "4096" is not of type int'),
        (("page_size",), True, "page_size: true is not of type int"),
        (("cacheable", "fwb"), 1, "cacheable.fwb: 1 is not of type bool"),
        (("cacheable", "generation"), "new", 'cacheable.generation: "new" is none of legacy'),
        (("cacheable",), [], "cacheable: [] is not an object"),
        (("cpu", "features"), "SVE", 'cpu.features: "SVE" is not an array'),
        (("cpu", "features", 0), 7, "cpu.features[0]: 7 is not of type str"),
        (("cpu", "registers", "MIDR_EL1"), "f", 'cpu.registers.MIDR_EL1: "f" is not a number'),
        (("cpu", "registers", "MIDR_EL1"), "0x1" + 16 * "0", "cpu.registers.MIDR_EL1: "),
        (("cpu", "registers", "MIDR_EL1"), "0x-1", "cpu.registers.MIDR_EL1: "),
        (("cpu", "registers", "MIDR_EL1"), 15, "cpu.registers.MIDR_EL1: 15 is not a number"),
        (("cpu", "registers"), None, "cpu.registers: null is not an object"),
        (("devices", 0, "bdf"), None, "devices[0].bdf: null is not of type str"),
        (("devices", 0, "more"), 1, "devices[0]: more is no member that this version has"),
        (("format",), "other", '"format" is not "pyvmm host description"'),
        (("version",), 2, "version 2 of a pyvmm host description; this pyvmm reads 1 to 1"),
        (("version",), True, "version True of a pyvmm host description"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, where: tuple[str | int, ...], to: Any, complaint: str
) -> None:
    path = changed(tmp_path / "host.json", *where, to=to)
    with pytest.raises(UserError) as caught:
        HostDescription.read(path)
    assert str(caught.value).startswith(str(path))
    assert complaint in str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    value = json.loads(GOOD.read_text())
    del value["cpu"]["gic"]
    (tmp_path / "host.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"host\.json\.cpu: there is no member gic"):
        HostDescription.read(tmp_path / "host.json")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"format": "pyvmm host description"}', 100_000 * "["]
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "host.json").write_text(text)
    with pytest.raises(UserError, match=r"host\.json: "):
        HostDescription.read(tmp_path / "host.json")
    with pytest.raises(UserError, match="No such file"):
        HostDescription.read(tmp_path / "none.json")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "host.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"host\.json: not JSON"):
        HostDescription.read(tmp_path / "host.json")
