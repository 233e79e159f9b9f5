"""The wheels: what they are called, what is in them, and that one works where it is installed."""

from __future__ import annotations

import email
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from backend import extension
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).parents[2]
CONFIGURATION: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = CONFIGURATION["project"]
NATIVE = "vmm/_native.abi3.so"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return this machine's wheel, built from a source distribution."""
    directory = tmp_path_factory.mktemp("native")
    script = ROOT / "scripts/build_wheels.py"
    subprocess.run([sys.executable, script, "--native", "--dist", directory], check=True)
    (wheel,) = directory.glob("*.whl")
    return wheel


def metadata(wheel: Path, name: str) -> Message:
    """Return one of the files in the wheel's dist-info."""
    with zipfile.ZipFile(wheel) as archive:
        where = f"pyvmm_arm64-{PROJECT['version']}.dist-info/{name}"
        return email.message_from_bytes(archive.read(where))


def check_tags(wheel: Path, machine: str) -> None:
    version = re.escape(PROJECT["version"])
    name = rf"pyvmm_arm64-{version}-(cp311-abi3-manylinux_2_(\d+)_{machine})\.whl"
    found = re.fullmatch(name, wheel.name)
    assert found
    assert int(found[2]) <= int(platform.libc_ver()[1].split(".")[1])
    assert metadata(wheel, "WHEEL").get_all("Tag") == [found[1]]
    assert metadata(wheel, "WHEEL")["Root-Is-Purelib"] == "false"
    with zipfile.ZipFile(wheel) as archive, archive.open(NATIVE) as file:
        extension = ELFFile(file)
        assert extension.get_machine_arch() == {"x86_64": "x64", "aarch64": "AArch64"}[machine]
        dynamic: Any = extension.get_section_by_name(".dynamic")
        needed = {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}
    assert needed <= {"libc.so.6", "ld-linux-aarch64.so.1"}  # libfdt is linked in


def test_the_extension_is_built_again_when_any_of_its_files_changes() -> None:
    """And they are all in a source distribution."""
    described = extension()
    files = {f"cdefs/{path.name}" for path in (ROOT / "cdefs").glob("*.*")}
    assert files == {*described.sources, *described.depends} | {"cdefs/_native.c"}


def test_the_wheel_is_for_any_python_from_3_11_on_and_for_this_glibc(wheel: Path) -> None:
    check_tags(wheel, platform.machine())


def test_the_wheel_has_all_of_vmm_and_nothing_else(wheel: Path) -> None:
    """Besides the extension's sources, which the lab builds its hosts' from."""
    described = extension()
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "vmm").rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".so"} and path.name[0] != "."
    }
    data = f"pyvmm_arm64-{PROJECT['version']}.data/data/"
    shared = {name.removeprefix(data) for name in found if name.startswith(data)}
    carried = {f"vmm/lab/{path}" for path in (*described.sources, *described.depends)}
    wanted |= {NATIVE} | carried - {"vmm/lab/cdefs/_native.c"}
    assert {name for name in found if not name.startswith(data)} == wanted
    assert "vmm/py.typed" in found
    pages = {f"share/man/man1/{path.name}" for path in (ROOT / "scripts/man").iterdir()}
    assert pages
    assert shared == pages | {
        "share/bash-completion/completions/pyvmm",
        "share/fish/vendor_completions.d/pyvmm.fish",
        "share/zsh/site-functions/_pyvmm",
    }


def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    told = metadata(wheel, "METADATA")
    needed = [line for line in told.get_all("Requires-Dist") or () if "extra ==" not in line]
    assert needed == PROJECT["dependencies"]
    assert told["Name"] == "pyvmm-arm64"
    assert told["Requires-Python"] == ">=3.11"
    assert told["License-Expression"] == "Apache-2.0"


def test_the_wheel_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    """In a venv of its own, with this one's cffi, click and structlog: no network is needed."""
    scratch = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", scratch], check=True)
    purelib = sysconfig.get_path("purelib")
    inside = Path(sysconfig.get_path("purelib", vars={"base": str(scratch)}))
    # Searched last, and the editable pyvmm in it stays unseen: its .pth is not read from here.
    (inside / "dependencies.pth").write_text(f"{purelib}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(scratch / "bin/python")]
    subprocess.run([*pip, "install", "-q", "--no-index", "--no-deps", str(wheel)], check=True)

    def run(*command: str) -> str:
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return subprocess.run(
            [scratch / "bin" / command[0], *command[1:]],
            cwd=tmp_path,
            env=env,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    assert run("pyvmm", "--version").endswith(PROJECT["version"])
    where = run("python", "-c", "import vmm._native; print(vmm._native.__file__)")
    assert where == str(inside / NATIVE)
    assert "Usage" in run("pyvmm", "run", "--help")
    assert "fwb" in run("pyvmm", "lab", "profiles")
    assert "Words that are ours" in run("pyvmm", "help", "vmm")
    assert (scratch / "share/man/man1/pyvmm-run.1").exists()
