"""Run the kernel's build system: configure from our fragments, compile with a progress bar."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import signal
import subprocess
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from vmm.errors import HostError
from vmm.lab import cache
from vmm.lab.command import NO_SPACE, run
from vmm.lab.progress import step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vmm.lab.kernel.source_tree import SourceTree

_CROSS = "" if platform.machine() == "aarch64" else "aarch64-linux-gnu-"

# For make. What is built must not depend on who builds it, where or when.
VARIABLES = (
    "ARCH=arm64",
    f"CROSS_COMPILE={_CROSS}",
    "KBUILD_BUILD_USER=pyvmm",
    "KBUILD_BUILD_HOST=lab",
    "KBUILD_BUILD_TIMESTAMP=@0",
    "KBUILD_BUILD_VERSION=1",
)

_TOOLS = {
    "bc": "bc",
    "bison": "bison",
    "dpkg-deb": "dpkg",
    "flex": "flex",
    "gcc": "gcc",
    f"{_CROSS}gcc": f"gcc-{_CROSS.rstrip('-')}".rstrip("-"),
    "make": "make",
    "patch": "patch",
    "tar": "tar",
    "xz": "xz-utils",
}
"""The programs that a build runs, and the Debian package of each."""

_STEPS = 1950
"""Lines that make prints for a whole build of lab.config on 7.3: the length of the bar."""

_INCREMENT = 140
"""The same after another kernel was built from the tree."""

_STEP = re.compile(rb"  [A-Z][A-Z0-9_]+ +\S")


def compiler() -> str:
    """Return the first line of the compiler's --version.

    Raises HostError if tools are missing; it names all missing packages.
    """
    packages = sorted({package for tool, package in _TOOLS.items() if not shutil.which(tool)})
    if packages:
        raise HostError(
            "building a kernel for the lab needs tools that are not installed",
            f"install them: apt-get install {' '.join(packages)}",
        )
    return run([f"{_CROSS}gcc", "--version"]).partition("\n")[0]


def requested(fragments: Sequence[str]) -> list[str]:
    """Return the ``CONFIG_X=value`` lines of the texts *fragments*."""
    return [line for text in fragments for line in text.splitlines() if line.startswith("CONFIG_")]


def configure(tree: SourceTree, fragments: Sequence[str]) -> None:
    """Configure *tree* as allnoconfig plus the texts *fragments*.

    Raises HostError for lines that Kconfig drops: it does so silently with what it doesn't know, or
    whose dependencies are off.
    """
    lines = requested(fragments)
    wanted = tree.build / ".config.lab"
    with cache.writing("a kernel configuration"):
        tree.build.mkdir(parents=True, exist_ok=True)
        wanted.write_text("".join(f"{line}\n" for line in lines))
    run([*_make(tree), f"KCONFIG_ALLCONFIG={wanted}", "allnoconfig"])
    got = set((tree.build / ".config").read_text().splitlines())
    dropped = [line for line in lines if line not in got]
    if dropped:
        raise HostError(
            f"{tree.version} doesn't take {', '.join(dropped)}",
            "the option is unknown to this kernel, or something it depends on is off",
        )


def compile_image(tree: SourceTree, name: str, lock: int) -> Path:
    """Make the Image of the configured *tree*; ``uname -r`` will end in -*name*.

    Existing objects are used, even if their builder was killed. make inherits *lock*, the
    descriptor from `SourceTree.alone`. Raises HostError, or OSError if the disk is full.
    """
    image = tree.build / "arch/arm64/boot/Image"
    again = image.exists()
    done = 0 if again else sum(1 for _ in tree.build.rglob(".*.cmd"))
    label = f"{'re' if again else ''}building the lab's {name} kernel from {tree.version}"
    jobs = len(os.sched_getaffinity(0))
    argv = ["nice", *_make(tree), f"-j{jobs}", f"LOCALVERSION=-{name}", "Image"]
    log = tree.root / "build.log"
    with (
        log.open("wb", buffering=0) as record,
        step(label, _INCREMENT if again else _STEPS) as reach,
        _running(argv, lock) as make,
    ):
        assert make.stdout
        for line in make.stdout:
            record.write(line)
            if _STEP.match(line):
                done += 1
                reach(done)
        status = make.wait()
    if status:
        _complain(log)
    return image


def _make(tree: SourceTree) -> list[str]:
    return ["make", "-C", str(tree.source), f"O={tree.build}", *VARIABLES]


@contextmanager
def _running(argv: list[str], inherited: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run *argv* in a process group of its own; on an exception, end the group."""
    process: subprocess.Popen[bytes] = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C"},
        pass_fds=[inherited],
        process_group=0,
    )
    try:
        yield process
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        raise
    finally:
        _drain(process.stdout)
        process.wait()


def _drain(stream: IO[bytes] | None) -> None:
    if stream:
        while stream.read(1 << 16):
            pass
        stream.close()


def _complain(log: Path) -> None:
    text = log.read_text(errors="replace")
    if NO_SPACE in text:
        raise OSError(errno.ENOSPC, NO_SPACE)
    errors = [line for line in text.splitlines() if re.search(r"\berror\b|\bError\b|\*\*\*", line)]
    first = (errors or text.splitlines()[-1:] or ["it did not say why"])[0]
    raise HostError(f"the kernel doesn't build: {first.strip()}", f"all it said is in {log}")
