"""pyvmm as lab hosts run it: compiled for their Python, with an arm64 ``_native``.

It comes from a checkout or from where pip has installed it. A tree is named by the hash of what
goes into it, so nothing is sent to a host that has it.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from typing import TYPE_CHECKING

from vmm.lab import cache
from vmm.lab.debian import rootfs
from vmm.lab.host.arm64_native import CARRIED, PACKAGE, PREBUILT, extension

if TYPE_CHECKING:
    from pathlib import Path

_KEPT = 8
"""Trees kept in the cache: what is being worked on changes often."""
_LEFT_OUT = {".partial", ".pyc", ".so"}

_SCRIPT = """\
#!/usr/bin/python3
import sys

from vmm.cli import main

sys.exit(main())
"""


def _sources() -> list[Path]:
    """Return the files of vmm that a lab host needs, without the extension."""
    found = []
    for path in sorted(PACKAGE.rglob("*")):
        names = path.relative_to(PACKAGE).parts
        hidden = any(name.startswith((".", "__pycache__")) for name in names)
        for_us = path == PREBUILT or path.is_relative_to(CARRIED)
        if path.is_file() and not hidden and not for_us and path.suffix not in _LEFT_OUT:
            found.append(path)
    return found


def archive() -> Path:
    """Return a tar archive of the tree; its name without the suffix is the tree's name."""
    native = extension()
    sources = _sources()
    content = hashlib.sha256(native.read_bytes())
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

    return cache.entry(where, build)
