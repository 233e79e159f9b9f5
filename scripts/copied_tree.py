"""A copy of the tree with an extension of its own: for scripts/mutate and scripts/sanitize."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

import native

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).resolve().parents[1]
COPIED: Final = ("cdefs", "vmm", "tests", "pyproject.toml")


class Tree:
    """A copy in *place*, whose extension is compiled and linked with *flags*, one file at a time.

    Raises subprocess.CalledProcessError, which has the compiler's output.
    """

    def __init__(self, place: Path, flags: Sequence[str] = ()) -> None:
        self.place = place
        for name in COPIED:
            if (ROOT / name).is_dir():
                unwanted = shutil.ignore_patterns("__pycache__", "*.so")
                shutil.copytree(ROOT / name, place / name, ignore=unwanted)
            else:
                shutil.copy(ROOT / name, place / name)
        include = sysconfig.get_paths()["include"]
        compiler = ["gcc", "-fPIC", *native.COMPILE, "-w", *flags]
        self.compile = [*compiler, "-c", f"-I{include}", "-Icdefs"]
        self.link = [*compiler, "-shared", "-o", "vmm/_native.abi3.so"]
        self._run([sys.executable, "-c", "import native; native.emit()"], "cdefs")
        self.objects = {path: self.object(path) for path in sorted((place / "cdefs").glob("*.c"))}

    def _run(self, command: list[str], where: str = ".") -> None:
        subprocess.run(command, cwd=self.place / where, check=True, capture_output=True)

    def object(self, source: Path, to: str = "") -> Path:
        """Compile *source*; return the object file."""
        made = source.with_suffix(f"{to}.o")
        self._run([*self.compile, str(source), "-o", str(made)])
        return made

    def build(self, source: Path | None = None) -> None:
        """Link the extension, with *source* compiled again."""
        objects = dict(self.objects)
        if source is not None:
            objects[source] = self.object(source, ".again")
        self._run([*self.link, *map(str, objects.values()), *native.LINK])

    def pytest(self, *arguments: str) -> list[str]:
        """Return the command that runs tests of the copy, in its place."""
        return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
