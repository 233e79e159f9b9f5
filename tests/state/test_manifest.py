"""Manifests: what was written comes back, and anything else is refused with the member at fault."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.state.snapshots import SIZE, STATE, make
from vmm.config import MachineConfig
from vmm.config.disk import DiskConfig
from vmm.config.snapshot import SnapshotConfig
from vmm.devices.pl061 import RESET
from vmm.errors import UserError
from vmm.machine.restore import Restore
from vmm.state import manifest

HERE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make(tmp_path / "saved")
    return tmp_path / "saved"


def edit(path: Path, change: Callable[[Any], object], *, sum_up: bool = True) -> str:
    """Change the manifest; return the error of reading it."""
    file = path / manifest.NAME
    before = file.read_text()
    value = json.loads(before)
    change(value)
    if sum_up:
        value["checksum"] = manifest._checksum(value)
    file.write_text(json.dumps(value))
    try:
        with pytest.raises(UserError) as refused:
            manifest.read(path)
    finally:
        file.write_text(before)
    assert str(file) in str(refused.value)
    return str(refused.value)


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    made = make(tmp_path / "saved")
    assert manifest.read(tmp_path / "saved") == made
    value = json.loads((tmp_path / "saved" / manifest.NAME).read_text())
    assert value["state"]["vcpus"][0]["registers"]["pc"] == "0x40080000"


def members(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of each member that is not in free-form JSON."""
    if path in (("machine",), ("checksum",)):
        return [path]
    inner: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(each for name, one in inner for each in members(one, (*path, name)))]


JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 1.5, "", "junk", "0xg", "-0x1", [], {}, [[]], {"a": 1}]
)


@HERE
@given(data=st.data())
def test_a_member_of_another_type_is_named(path: Path, data: st.DataObject) -> None:
    """All that `decode` reads is of the type that it has to be, whatever the file says."""
    text = (path / manifest.NAME).read_text()
    value = json.loads(text)
    free = {("machine",), ("checksum",), ("state", "mmio", 0, "device", "own")}
    where = data.draw(st.sampled_from(sorted(set(members(value)) - free - {()}, key=str)))
    junk = data.draw(JUNK)
    inner = value
    for name in where[:-1]:
        inner = inner[name]
    old = copy.deepcopy(inner[where[-1]])
    inner[where[-1]] = junk
    if type(junk) is type(old) or (where[-1] in ("ring", "alarm") and junk in (None, -1)):
        return
    (path / manifest.NAME).write_text(json.dumps(value))
    try:
        with pytest.raises(UserError) as refused:
            manifest.read(path)
    finally:
        (path / manifest.NAME).write_text(text)
    assert str(where[-1]) in str(refused.value)


@HERE
@given(cut=st.integers(1, 500), where=st.floats(0, 1))
def test_a_manifest_that_is_cut_or_changed_is_refused(path: Path, cut: int, where: float) -> None:
    text = (path / manifest.NAME).read_text()
    at = int(where * (len(text) - cut - 2))
    made = manifest.read(path)
    for wrong in (text[: -cut - 2], text[:at] + text[at + cut :]):
        (path / manifest.NAME).write_text(wrong)
        try:
            assert manifest.read(path) == made, "only white space is gone"
        except UserError:
            pass
        else:
            assert json.loads(wrong) == json.loads(text)
    (path / manifest.NAME).write_text(text)


@pytest.mark.parametrize("version", range(1, manifest.READABLE + 1))
def test_each_version_is_read(tmp_path: Path, version: int) -> None:
    sample = Path(__file__).parent / "samples" / f"{version}.json"
    shutil.copy(sample, tmp_path / manifest.NAME)
    found = manifest.read(tmp_path)
    older = {"vmgenid": manifest.NO_ID, "gpio": RESET} if version < 2 else {}
    assert found.state == replace(STATE, **older)  # type: ignore[arg-type]
    assert manifest.text(found) == sample.read_text() or version < manifest.READABLE


def test_each_fault_is_named(path: Path) -> None:
    newer = manifest.READABLE + 1
    assert f"version {newer}" in edit(path, lambda value: value.update(version=newer))
    assert '"format" is not' in edit(path, lambda value: value.update(format="x"))
    assert "there is no member memory" in edit(path, lambda value: value.pop("memory"))
    said = edit(path, lambda value: value["memory"].update(size="1"))
    assert 'memory.size: "1" is not of type int' in said
    said = edit(path, lambda value: value.update(colour=1))
    assert "colour is no member that this version has" in said
    said = edit(path, lambda value: value["state"]["rtc"].update(offset=3), sum_up=False)
    assert "checksum: the text is not what was written" in said
    said = edit(path, lambda value: value["memory"].update(file="../x"))
    assert "memory.file: '../x' is no name of a file" in said


def refusal(directory: Path, *disks: DiskConfig) -> str:
    with pytest.raises(UserError) as refused, Restore(directory) as restore:
        restore.config(MachineConfig(restore=directory, disks=disks))
    return str(refused.value)


def test_a_snapshot_without_a_manifest_or_memory_is_refused(path: Path, tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(tmp_path)
    (path / "memory.1").write_bytes(b"short")
    assert "memory.1 has 5 bytes, where the manifest's memory.size is" in refusal(path)
    (path / "memory.1").unlink()
    assert "memory.1: No such file or directory" in refusal(path)


def test_the_saved_machine_is_the_one_that_runs(path: Path) -> None:
    asked = MachineConfig(restore=path, snapshot=SnapshotConfig(Path("again")), sandbox="off")
    with Restore(path) as restore:
        found = restore.config(asked)
        restore.check_memory()
    saved = MachineConfig(image=Path("/guest.img"), memory=SIZE)
    assert found == replace(
        saved, restore=path, snapshot=SnapshotConfig(Path("again")), sandbox="off"
    )


def test_memory_that_was_changed_is_told_by_its_checksum(path: Path) -> None:
    with (path / "memory.1").open("r+b") as file:
        file.write(b"x")
    with Restore(path) as restore, pytest.raises(UserError, match=r"not what memory\.sha256 says"):
        restore.check_memory()


def test_a_disk_that_went_on_is_refused(tmp_path: Path) -> None:
    """The guest's page cache and file system would meet another disk than the one they know."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(512))
    make(tmp_path / "saved", disk)
    with Restore(tmp_path / "saved") as restore:
        restore.config(MachineConfig(restore=tmp_path / "saved"))
    disk.write_bytes(bytes(1024))
    assert f"the disk {disk} was changed after the snapshot" in refusal(tmp_path / "saved")
    disk.unlink()
    assert f"its disk {disk}: No such file or directory" in refusal(tmp_path / "saved")


def test_a_copy_takes_a_disks_place(tmp_path: Path) -> None:
    disk, copy, saved = tmp_path / "disk", tmp_path / "copy", tmp_path / "saved"
    disk.write_bytes(bytes(512))
    make(saved, disk)
    shutil.copy2(disk, copy)
    disk.write_bytes(bytes(1024))
    with Restore(saved) as restore:
        found = restore.config(MachineConfig(restore=saved, disks=(DiskConfig(copy),)))
    assert [each.path for each in found.disks] == [copy]
    os.utime(copy)
    assert f"the disk {copy} was changed after the snapshot" in refusal(saved, DiskConfig(copy))
    both = DiskConfig(copy), DiskConfig(disk)
    assert "2 copies of disks, and the snapshot has 1" in refusal(saved, *both)
    told = refusal(saved, DiskConfig(copy, read_only=True))
    assert "the snapshot has the disk's options" in told


@pytest.mark.parametrize(
    "machine",
    [None, {}, {"config": 1}, {"config": {"MachineConfig": {"colour": 1}}}, [], "x"],
)
def test_a_configuration_that_is_none_is_refused(path: Path, machine: object) -> None:
    file = path / manifest.NAME
    value = json.loads(file.read_text())
    value["machine"] = machine
    value["checksum"] = manifest._checksum(value)
    file.write_text(json.dumps(value))
    assert "manifest.json: machine: " in refusal(path)
