"""What pip's users get: a wheel or a source distribution, no checkout, an empty directory.

They share the cache of Debian's packages with the other tests, and one lab host.
"""

from __future__ import annotations

import lzma
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.lab.guest import flat_guest
from tests.repository.test_packaging import NATIVE, ROOT, check_tags
from vmm.lab import cache
from vmm.lab.host.session import inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm.lab.host.emulated_host import Host

pytestmark = pytest.mark.lab

CARRIED = "vmm/lab/arm64_native.so.xz"
HELLO = f"""
    ldr x2, =UART
    mov w1, #'!'
    strb w1, [x2]
    {flat_guest.POWER_OFF}
"""
OWN_CACHES = ("native", "trees")


class Built(NamedTuple):
    """What scripts/wheels builds; on an arm64 machine both wheels are one."""

    source: Path
    wheel: Path
    arm64_wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    directory = tmp_path_factory.mktemp("dist")
    script = ROOT / "scripts/build_wheels.py"
    subprocess.run([sys.executable, script, "--dist", directory], check=True)
    (source,) = directory.glob("*.tar.gz")
    (wheel,) = directory.glob(f"*_{platform.machine()}.whl")
    (arm64_wheel,) = directory.glob("*_aarch64.whl")
    return Built(source, wheel, arm64_wheel)


class User(NamedTuple):
    """Somebody with a venv, in an empty *directory*."""

    venv: Path
    directory: Path
    env: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.venv / "bin" / command[0], *command[1:]],
            cwd=self.directory,
            env=self.env,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def told(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout


def install(what: Path, directory: Path, **env: str) -> User:
    """Return a user who has done no more than ``pip install``."""
    venv, empty = directory / "venv", directory / "empty"
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python")]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([*pip, "install", "-q", str(what)], check=True, cwd=empty, env=own)
    user = User(venv, empty, own | env)
    where = user.told("python", "-c", "import vmm; print(vmm.__file__)")
    assert Path(where).is_relative_to(venv)
    return user


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def user(built: Built, runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """Return a user of the wheel, who keeps a lab host up."""
    user = install(built.wheel, tmp_path_factory.mktemp("user"), XDG_RUNTIME_DIR=runtime)
    user.told("pyvmm", "lab", "up", "fwb")
    yield user
    user.told("pyvmm", "lab", "down", "fwb")


def test_the_wheel_for_arm64_is_the_same_but_for_the_extension(built: Built) -> None:
    check_tags(built.arm64_wheel, "aarch64")
    check_tags(built.wheel, platform.machine())
    with zipfile.ZipFile(built.wheel) as ours, zipfile.ZipFile(built.arm64_wheel) as theirs:
        assert sorted({*ours.namelist()} - {CARRIED}) == sorted(theirs.namelist())
        for name in theirs.namelist():
            if name != NATIVE and PurePosixPath(name).name not in {"WHEEL", "RECORD"}:
                assert ours.read(name) == theirs.read(name)
        if built.wheel != built.arm64_wheel:
            assert lzma.decompress(ours.read(CARRIED)) == theirs.read(NATIVE)


def test_the_wheel_for_arm64_runs_there(
    built: Built, lab_host: Callable[[str], Host], tmp_path: Path
) -> None:
    with zipfile.ZipFile(built.arm64_wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    done = lab_host("fwb").run(
        [
            "python3",
            "-c",
            "import vmm._native, vmm.cli; print(vmm._native.__file__); vmm.cli.main()",
            "--version",
        ],
        cwd=tmp_path,  # not a checkout, whose own vmm would be found
        env={"PYTHONPATH": inside(tmp_path / "unpacked")},
        tree=False,
        timeout=120,
    )
    assert done.status == 0, done.stderr.decode()
    where, version = done.stdout.decode().splitlines()
    assert where.endswith("unpacked/vmm/_native.abi3.so")
    assert version.startswith("pyvmm, version ")


def test_a_user_of_the_wheel_runs_a_guest(user: User) -> None:
    guest = flat_guest.assemble(user.directory, HELLO)
    assert user.told("pyvmm", "run", "--host", "lab", guest.name) == "!"


def test_a_user_of_the_wheel_sees_what_kvm_can_do(user: User) -> None:
    assert "aarch64" in user.told("pyvmm", "probe", "--host", "lab")
    assert "RAM" in user.told("pyvmm", "map", "--host", "lab", "--svg", "map.svg")
    assert (user.directory / "map.svg").exists()


def test_a_user_of_the_wheel_runs_commands_in_the_lab(user: User) -> None:
    script = "import vmm._native; print(vmm._native.__file__)"
    assert user.told("pyvmm", "lab", "exec", "fwb", "--", "uname", "-m") == "aarch64\n"
    found = user.told("pyvmm", "lab", "exec", "fwb", "--", "python3", "-c", script)
    assert found.startswith("/run/pyvmm/")


def test_a_user_of_the_source_distribution_runs_a_guest(
    built: Built, user: User, tmp_path: Path
) -> None:
    """Pip builds the wheel; the lab's extension is built by the lab, of what the wheel carries."""
    shared = cache.root()
    own = tmp_path / "cache/pyvmm"
    own.mkdir(parents=True)
    for path in shared.iterdir():
        if path.name not in OWN_CACHES:
            (own / path.name).symlink_to(path)
    env = {"XDG_CACHE_HOME": str(own.parent), "XDG_RUNTIME_DIR": user.env["XDG_RUNTIME_DIR"]}
    another = install(built.source, tmp_path, **env)
    guest = flat_guest.assemble(another.directory, HELLO)
    done = another.run("pyvmm", "run", "--host", "lab", guest.name)
    assert (done.returncode, done.stdout) == (0, "!"), done.stderr
    assert "building vmm._native for arm64" in done.stderr
    assert (own / "native").exists()
