"""Build wheels for x86-64 and aarch64: one abi3 wheel of each serves every CPython from 3.11 on.

setuptools builds the one for this machine. The one for arm64 differs in vmm._native only, which is
the extension that lab hosts run, cross-built by vmm.lab.host.arm64_native. (On arm64 there is only that
machine's own.) The platform tags are what auditwheel finds the extensions to need.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from vmm.errors import HostError, VmmError
from vmm.lab.host.arm64_native import extension

ROOT: Final = Path(__file__).parent.parent
SOURCES: Final = ("scripts/man", "LICENSE", "README.md", "pyproject.toml", "cdefs", "vmm")
LEFT_OUT: Final = ("*.so", "*.pyc", "__pycache__", "_native.c", ".*")
NATIVE: Final = "vmm/_native.abi3.so"


def run(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Run a module of this Python: its name, then arguments. Returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise HostError(f"{arguments[0]} {arguments[1]} failed: " + " | ".join(lines[-8:]))
    return done.stdout


def build(directory: Path) -> Path:
    """Build this machine's wheel in *directory*, of a copy: a checkout may be in use meanwhile."""
    copy = directory / "source"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        else:
            shutil.copyfile(ROOT / name, copy / name)
    # By way of a source distribution, so that one is known to be whole.
    run("build", "--no-isolation", "--outdir", directory / "built", copy, cwd=directory)
    (wheel,) = (directory / "built").glob("*.whl")
    return wheel


def tag(wheel: Path) -> Path:
    """Rename *wheel* to the oldest platform that it runs on."""
    said = run("auditwheel", "show", wheel)
    flat = " ".join(said.split())
    found = re.search(r'following platform tag: "(\w+)"', flat)
    if not found:
        raise HostError(f"auditwheel does not tell {wheel.name}'s platform: {flat[-200:]}")
    name = run("wheel", "tags", "--remove", "--platform-tag", found[1], wheel).split()[-1]
    return wheel.with_name(name)


def for_arm64(wheel: Path, directory: Path) -> Path:
    """Make of another machine's *wheel* the one for arm64, in *directory*."""
    run("wheel", "unpack", "--dest", directory, wheel)
    (tree,) = (path for path in directory.iterdir() if path.is_dir())
    shutil.copyfile(extension(ROOT), tree / NATIVE)
    run("wheel", "pack", "--dest-dir", directory, tree)
    arguments = ("--remove", "--platform-tag", "linux_aarch64")
    name = run("wheel", "tags", *arguments, directory / wheel.name).split()[-1]
    return directory / name


def main() -> None:
    """Build the wheels and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where to put them")
    parser.add_argument("--native", action="store_true", help="only this machine's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pyvmm-wheels-") as name:
        directory = Path(name)
        wheel = build(directory)
        wheels = [tag(wheel)]
        if platform.machine() != "aarch64" and not options.native:
            (directory / "arm64").mkdir()
            wheels.append(tag(for_arm64(wheels[0], directory / "arm64")))
        options.dist.mkdir(parents=True, exist_ok=True)
        for wheel in wheels:
            print(shutil.copy(wheel, options.dist))


if __name__ == "__main__":
    try:
        main()
    except VmmError as error:
        print(f"wheels: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
