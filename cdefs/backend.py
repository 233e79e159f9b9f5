"""The build backend: write cdefs/_native.c from the cdefs, then let setuptools build the project.

Only ``vmm._native`` needs this. It is one abi3 extension, so a wheel serves every CPython from
3.11 on. Where the compiler finds headers and libraries that are not the build machine's (a cross
build) is told through CC, CFLAGS and LDFLAGS, as with any C project.
"""

from __future__ import annotations

from native import emit
from setuptools import build_meta as _setuptools
from setuptools.build_meta import (
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

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


def build_wheel(directory: str, config: _Config = None, metadata: str | None = None) -> str:
    """PEP 517: build a wheel into *directory*."""
    emit()
    return _setuptools.build_wheel(directory, config, metadata)


def build_editable(directory: str, config: _Config = None, metadata: str | None = None) -> str:
    """PEP 660: build an editable wheel into *directory*; the extension lands beside vmm/."""
    emit()
    return _setuptools.build_editable(directory, config, metadata)


def build_sdist(directory: str, config: _Config = None) -> str:
    """PEP 517: build a source distribution into *directory*."""
    emit()
    return _setuptools.build_sdist(directory, config)
