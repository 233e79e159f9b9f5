"""The lab's arm64 extension: where it comes from, in a checkout and where pip has put pyvmm."""

from __future__ import annotations

import lzma
import platform
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.lab import cache
from vmm.lab.host import arm64_native, tree

RECIPE = "native.py"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of a vmm that is on an x86-64 machine, and lacks all of it yet."""
    package = tmp_path / ".deps/vmm"
    (package / "lab").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    checkout = arm64_native.PACKAGE.parent
    for name in ("PACKAGE", "PREBUILT", "CARRIED", "CHECKOUT"):
        real = getattr(arm64_native, name).relative_to(checkout)
        for module in (arm64_native, tree):
            monkeypatch.setattr(module, name, package.parent / real, raising=False)
    return package


def test_a_wheels_own_is_unpacked_once(installed: Path) -> None:
    arm64_native.PREBUILT.write_bytes(lzma.compress(b"\x7fELF"))
    path = arm64_native.extension()
    assert path.read_bytes() == b"\x7fELF"
    assert path.is_relative_to(cache.root() / "native")
    assert arm64_native.extension() == path


def test_sources_without_a_compiler_are_an_error_that_names_packages(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm64_native.CARRIED.mkdir()
    (arm64_native.CARRIED / RECIPE).touch()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(HostError, match="apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64"):
        arm64_native.extension()


def test_an_arm64_machine_that_is_no_checkout_gives_its_own(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert arm64_native.extension() == installed / "_native.abi3.so"


def test_a_vmm_without_any_says_what_to_do(installed: Path) -> None:
    with pytest.raises(HostError, match="pip install --force-reinstall"):
        arm64_native.extension()


def test_a_carried_extension_and_its_sources_stay_here(installed: Path) -> None:
    """Lab hosts get neither; and a hidden directory above vmm hides nothing of it."""
    arm64_native.CARRIED.mkdir()
    names = ("__init__.py", "lab/cdefs/native.py", "lab/arm64_native.so.xz", "_native.abi3.so")
    for name in (*names, "lab/cache.py", "lab/.cache.py.swp"):
        (installed / name).touch()
    assert tree._sources() == [installed / "__init__.py", installed / "lab/cache.py"]


def test_the_generated_file_and_the_back_end_are_no_inputs() -> None:
    names = ("run.c", "run.h", "kvm.cdef.h", RECIPE, "_native.c", "backend.py", "README.md")
    inputs = [name for name in names if arm64_native._is_input(Path(name))]
    assert inputs == ["run.c", "run.h", "kvm.cdef.h", RECIPE]
