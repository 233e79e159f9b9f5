"""Build a source distribution, and wheels for x86-64 and aarch64.

One abi3 wheel of each serves every CPython from 3.11 on. setuptools builds the one for this
machine, from the source distribution. The one for arm64 differs in vmm._native only, which
vmm.lab.host.arm64_native cross-compiles; the one for x86-64 carries that extension, too, for its
lab hosts. (On arm64 only that machine's own is built.) The platform tags are what auditwheel finds
the extensions to need.
"""

from __future__ import annotations

import argparse
import lzma
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from vmm.errors import HostError, VmmError
from vmm.lab.host.arm64_native import PACKAGE, PREBUILT, extension

ROOT: Final = Path(__file__).parent.parent
SOURCES: Final = ("scripts/man", "LICENSE", "README.md", "pyproject.toml", "cdefs", "vmm")
LEFT_OUT: Final = ("*.so", "*.pyc", "__pycache__", "_native.c", ".*")
NATIVE: Final = "vmm/_native.abi3.so"
CARRIED: Final = PREBUILT.relative_to(PACKAGE.parent)


def run(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Run a module of this Python: its name, then arguments. Return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise HostError(f"{arguments[0]} {arguments[1]} failed: " + " | ".join(lines[-8:]))
    return done.stdout


def build(directory: Path) -> tuple[Path, Path]:
    """Build a source distribution and of it this machine's wheel, both in *directory*.

    They are built from a copy: somebody may use the checkout meanwhile.
    """
    copy = directory / "source"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        else:
            shutil.copyfile(ROOT / name, copy / name)
    run("build", "--no-isolation", "--outdir", directory / "built", copy, cwd=directory)
    (source,) = (directory / "built").glob("*.tar.gz")
    (wheel,) = (directory / "built").glob("*.whl")
    return source, wheel


def tag(wheel: Path) -> Path:
    """Rename *wheel* to the oldest platform that it runs on."""
    said = run("auditwheel", "show", wheel)
    flat = " ".join(said.split())
    found = re.search(r'following platform tag: "(\w+)"', flat)
    if not found:
        raise HostError(f"auditwheel does not tell {wheel.name}'s platform: {flat[-200:]}")
    return _with_platform(wheel, found[1])


def _with_platform(wheel: Path, platform_tag: str) -> Path:
    arguments = ("--remove", "--platform-tag", platform_tag)
    name = run("wheel", "tags", *arguments, wheel).split()[-1]
    return wheel.with_name(name)


def with_file(wheel: Path, name: str | Path, content: bytes, directory: Path) -> Path:
    """Return a copy of *wheel*, in the new *directory*, in which *content* is the file *name*."""
    directory.mkdir()
    run("wheel", "unpack", "--dest", directory, wheel)
    (tree,) = directory.iterdir()
    (tree / name).write_bytes(content)
    run("wheel", "pack", "--dest-dir", directory, tree)
    return directory / wheel.name


def main() -> None:
    """Build them all and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where to put them")
    parser.add_argument(
        "--native", action="store_true", help="only this machine's, and without what needs the lab"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pyvmm-wheels-") as name:
        directory = Path(name)
        source, wheel = build(directory)
        wheels = [wheel]
        if platform.machine() != "aarch64" and not options.native:
            native = extension().read_bytes()
            arm64 = with_file(wheel, NATIVE, native, directory / "arm64")
            carried = lzma.compress(native, preset=lzma.PRESET_EXTREME)
            wheels = [
                with_file(wheel, CARRIED, carried, directory / "carrying"),
                _with_platform(arm64, "linux_aarch64"),
            ]
        options.dist.mkdir(parents=True, exist_ok=True)
        for path in (source, *map(tag, wheels)):
            print(shutil.copy(path, options.dist))


if __name__ == "__main__":
    try:
        main()
    except VmmError as error:
        print(f"wheels: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
