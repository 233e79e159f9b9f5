"""The working tree's vmm as lab hosts run it: compiled for their Python, with an arm64 _native.

A tree is named by the hash of what goes into it, so a host that has it needs nothing sent.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from pathlib import Path

from vmm.lab import cache
from vmm.lab.debian import rootfs
from vmm.lab.host.arm64_native import extension

PACKAGE = Path(__file__).parents[2]
_KEPT = 8
"""Trees kept in the cache: what is being worked on changes often."""

_SCRIPT = """\
#!/usr/bin/python3
import sys

from vmm.cli import main

sys.exit(main())
"""


def _sources() -> list[Path]:
    found = []
    for path in sorted(PACKAGE.rglob("*")):
        hidden = any(part.startswith((".", "__pycache__")) for part in path.parts[-3:])
        if path.is_file() and not hidden and path.suffix not in {".so", ".pyc", ".partial"}:
            found.append(path)
    return found


def archive() -> Path:
    """Return a tar archive of the tree; its name without the suffix is the tree's name."""
    native = extension(PACKAGE.parent)
    sources = _sources()
    content = hashlib.sha256(native.parent.name.encode())
    for path in sources:
        content.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes() + b"\0")
    where = cache.root() / "trees" / f"{content.hexdigest()[:16]}.tar"

    def build(temporary: Path) -> None:
        tree = temporary.with_suffix(".tree")
        cache.remove(tree)
        try:
            for path in sources:
                target = tree / "vmm" / path.relative_to(PACKAGE)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            shutil.copyfile(native, tree / "vmm" / "_native.abi3.so")
            rootfs.compile_python(tree)
            (tree / "bin").mkdir()
            (tree / "bin/pyvmm").write_text(_SCRIPT)
            (tree / "bin/pyvmm").chmod(0o755)
            with tarfile.open(temporary, "w") as file:
                file.add(tree, ".")
        finally:
            cache.remove(tree)
        cache.prune(where.parent, "*.tar", _KEPT)
        cache.prune(native.parents[1], "*", _KEPT)

    return cache.entry(where, build)
