"""What is in the root directory of a daemon behind walls: see cdefs/walls.c.

    libraries, the program, /dev/null       read-only, by name
    the files that it works on              as they were when the broker was told of them

Each has the name there that it has on the host. A file that the daemon works on is looked for when
the daemon starts, and has to be the one that had the name when the broker was told of it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

from vmm._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LIBRARIES: Final = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"),
    "/etc/ld.so.cache",
)
"""What dynamic linkers read."""
LISTED: Final = re.compile(rb"(/\S+) \(0x")
"""A library, as dynamic linkers list it."""
DEVICES: Final = (("/dev/null", True), ("/dev/urandom", False))
"""What libraries open at their start, and whether they write to it."""


def libraries(program: str) -> list[str]:
    """Return the files and directories in which *program*'s libraries may be.

    Libraries elsewhere are asked of the dynamic linker. A symbolic link that leads out of the
    directories does so to a file of the list, which has the link's text for a name.
    """
    import subprocess

    directory = os.path.dirname(os.path.realpath(program))  # noqa: PTH120
    own = (f"{os.path.dirname(directory)}/{name}" for name in ("lib", "lib64"))  # noqa: PTH120
    found = dict.fromkeys((*LIBRARIES, *own))
    environment = {**os.environ, "LD_TRACE_LOADED_OBJECTS": "1"}  # ld.so(8): it only lists
    listed = subprocess.run(
        [program, "--version"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    for library in LISTED.findall(listed.stdout):
        path = os.path.abspath(os.fsdecode(library))  # noqa: PTH100
        while path.startswith(tuple(f"{each}/" for each in found)) and os.path.islink(path):  # noqa: PTH114
            text = os.readlink(path)  # noqa: PTH115
            path = os.path.normpath(os.path.join(os.path.dirname(path), text))  # noqa: PTH118, PTH120
        if not path.startswith(tuple(f"{each}/" for each in found)):
            found[path] = None
    return [*found]


class Walls:
    """The walls of one daemon.

    read   files and directories that the program reads; those that do not exist are left out
    files  the files that it works on, by absolute names, and whether it writes them

    Raises OSError: a file of *files* does not exist.
    """

    def __init__(
        self, program: str, read: Iterable[str], files: Sequence[tuple[str, bool]]
    ) -> None:
        self._texts: list[Any] = []
        """What the places point to."""
        self._made: set[str] = set()
        places: list[dict[str, Any]] = []
        for path in (*read, program):
            places += self._library(path)
        for path, writable in (*DEVICES, *files):
            kind = lib.PYVMM_PLACE_WRITABLE if writable else lib.PYVMM_PLACE_FILE
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)  # the broker's, until it ends
            places += self._place(path, kind, pinned=fd)
        self._places = ffi.new("struct pyvmm_place[]", places)
        self.native = ffi.new(
            "struct pyvmm_walls *",
            {
                "count": len(places),
                "places": self._places,
                "root": not os.geteuid(),
                "user": os.geteuid(),
                "group": os.getegid(),
            },
        )

    def _library(self, path: str) -> Iterator[dict[str, Any]]:
        if os.path.islink(path) and os.path.isdir(path):  # noqa: PTH114, PTH112
            text = os.readlink(path)  # noqa: PTH115
            yield from self._place(path, lib.PYVMM_PLACE_LINK, source=text)
        elif os.path.isdir(path):  # noqa: PTH112
            yield from self._place(path, lib.PYVMM_PLACE_TREE)
        elif os.path.exists(path):  # noqa: PTH110
            yield from self._place(path, lib.PYVMM_PLACE_FILE)

    def _place(
        self, path: str, kind: int, *, source: str | None = None, pinned: int = -1
    ) -> Iterator[dict[str, Any]]:
        """Yield the place of *path*, and before it the directories that are on the way there."""
        if path in self._made:
            return
        at = path.find("/", 1)
        while at >= 0:
            if path[:at] not in self._made:
                self._made.add(path[:at])
                yield self._entry(path[:at], path[:at], lib.PYVMM_PLACE_DIRECTORY, -1)
            at = path.find("/", at + 1)
        self._made.add(path)
        yield self._entry(path if source is None else source, path, kind, pinned)

    def _entry(self, source: str, target: str, kind: int, pinned: int) -> dict[str, Any]:
        texts = [ffi.new("char[]", os.fsencode(each)) for each in (source, target.lstrip("/"))]
        self._texts += texts
        return {"source": texts[0], "target": texts[1], "kind": kind, "pinned": pinned}
