"""The build backend: write cdefs/_native.c from the cdefs, then let setuptools build the project.

The extension is described here and not in pyproject.toml, whose ext-modules take no globs.

A wheel also gets the extension's sources, in vmm/lab/cdefs: the lab of an x86-64 machine builds
the extension for its emulated arm64 hosts from them (vmm/lab/host/arm64_native.py).

Only ``vmm._native`` needs this. It is one abi3 extension, so a wheel serves every CPython from
3.11 on. Where the compiler finds headers and libraries that are not the build machine's (a cross
build) is told through CC, CFLAGS and LDFLAGS, as with any C project.
"""

from __future__ import annotations

import functools
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import filters
import native
import setuptools
from click.shell_completion import get_completion_class
from setuptools import build_meta as _setuptools
from setuptools.build_meta import (
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.build_py import build_py

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

_Config = dict[str, str | list[str] | None] | None


PACKAGES = "gcc libc6-dev libfdt-dev libseccomp2 python3-dev"
"""What Debian has to have for a build."""


def extension() -> setuptools.Extension:
    """Describe ``vmm._native``, with all of cdefs: a source distribution holds what is named here.

    Paths are relative to the project's root, where PEP 517 calls the backend.
    """

    def relative(path: os.PathLike[str]) -> str:
        return os.path.relpath(path, native.HERE.parent)

    return setuptools.Extension(
        native.NAME,
        [relative(path) for path in native.sources()],
        depends=[relative(path) for path in native.dependencies()],
        include_dirs=[relative(native.HERE)],
        extra_compile_args=native.COMPILE,
        extra_link_args=native.LINK,
        py_limited_api=True,
    )


COMPLETION = {
    "bash": "share/bash-completion/completions/pyvmm",
    "zsh": "share/zsh/site-functions/_pyvmm",
    "fish": "share/fish/vendor_completions.d/pyvmm.fish",
}
"""Where each shell looks for a command's completion, below the installation's prefix."""


def _complete(build: Path) -> list[tuple[str, Sequence[str]]]:
    """Write click's completion scripts below *build*; return them as setuptools' data files."""
    files: list[tuple[str, Sequence[str]]] = []
    for shell, name in COMPLETION.items():
        made = get_completion_class(shell)
        assert made
        script = made(click.Group("pyvmm"), {}, "pyvmm", "_PYVMM_COMPLETE")
        path = build / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script.source_template % script.source_vars())
        files.append((os.path.dirname(name), [str(path)]))  # noqa: PTH120  (of no real path)
    return files


class BuildPy(build_py):
    """Build the packages, and put the extension's sources into one."""

    def run(self) -> None:
        """Run the command."""
        super().run()
        if self.editable_mode:
            return
        carried = Path(self.build_lib, "vmm/lab/cdefs")
        shutil.rmtree(carried, ignore_errors=True)
        carried.mkdir(parents=True)
        for path in {*native.sources(), *native.dependencies()} - {native.GENERATED}:
            shutil.copyfile(path, carried / path.name)


def _prepare() -> None:
    native.emit()
    filters.emit()
    pages = sorted(str(path) for path in Path("scripts/man").glob("*.1"))
    data: list[tuple[str, Sequence[str]]] = [("share/man/man1", pages), *_complete(Path("build"))]
    # Without a setup.py, setuptools' backend calls setup() without arguments.
    setup = functools.partial(
        setuptools.setup,
        ext_modules=[extension()],
        data_files=data,
        cmdclass={"build_py": BuildPy},
    )
    setuptools.setup = setup


@contextmanager
def _explained() -> Iterator[None]:
    """Add to a failure what compiling takes: a missing header does not say whose it is."""
    try:
        yield
    except (Exception, SystemExit) as error:
        message = "building pyvmm takes a C compiler and headers"
        raise SystemExit(f"{error}\n{message}: apt-get install {PACKAGES}") from error


def build_wheel(directory: str, config: _Config = None, metadata: str | None = None) -> str:
    """PEP 517: build a wheel into *directory*."""
    _prepare()
    with _explained():
        return _setuptools.build_wheel(directory, config, metadata)


def build_editable(directory: str, config: _Config = None, metadata: str | None = None) -> str:
    """PEP 660: build an editable wheel into *directory*; the extension lands beside vmm/."""
    _prepare()
    with _explained():
        return _setuptools.build_editable(directory, config, metadata)


def build_sdist(directory: str, config: _Config = None) -> str:
    """PEP 517: build a source distribution into *directory*."""
    _prepare()
    return _setuptools.build_sdist(directory, config)
