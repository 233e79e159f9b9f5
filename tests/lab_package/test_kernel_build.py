"""Building the lab's kernels, on a source package in miniature with the real tools."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab_package.kernel_package import PATCH, make_package
from vmm.errors import HostError, UserError
from vmm.lab import cache
from vmm.lab.debian import apt
from vmm.lab.kernel import build, flavour
from vmm.lab.kernel.flavour import BuiltKernel
from vmm.lab.kernel.source_tree import SourceTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@pytest.fixture
def deb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_package(tmp_path)


@pytest.fixture
def tree(deb: Path) -> SourceTree:
    tree = SourceTree(deb)
    tree.unpack()
    return tree


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    path = tmp_path / "uno.patch"
    path.write_text(PATCH)
    return path


@pytest.fixture
def flavours(deb: Path, patch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both kernels of 7.3, from the miniature package; returns the mirror's stand-in's log."""
    log = deb.with_name("fetched")
    log.touch()

    def fetch(packages: Sequence[str], *, suite: str, arch: str) -> list[Path]:
        assert (suite, arch) == ("trixie-backports", "arm64")
        log.write_text(log.read_text() + f"{packages}\n")
        return [deb]

    def text(directory: str, name: str) -> Path:
        if directory == "patches":
            return patch
        symbol = {"lab.config": "SMP", "since-6.13.config": "KVM"}[name]
        (deb.parent / name).write_text(f"# why\nCONFIG_{symbol}=y\n")
        return deb.parent / name

    monkeypatch.setattr(apt, "newest", lambda _pattern, **_: "linux-source-7.3")
    monkeypatch.setattr(apt, "fetch", fetch)
    monkeypatch.setattr(flavour, "_data", text)
    mainline = flavour.FLAVOURS["mainline"]
    monkeypatch.setitem(flavour.FLAVOURS, "mainline", replace(mainline, patches=()))
    monkeypatch.setitem(flavour.FLAVOURS, "rfc", replace(mainline, patches=("uno.patch",)))
    return log


def breakage(script: str) -> Path:
    """Make every compilation run *script* (sh; $1 is the object's name)."""
    (root,) = (cache.root() / "kernel").glob("linux-source-*")
    (root / "breakage").write_text(script)
    return root


def compiled(root: Path) -> list[str]:
    return sorted((root / "build/compiled").read_text().split())


def test_a_tree_is_named_by_package_and_version(tree: SourceTree) -> None:
    assert tree.version == "linux-source-7.3_7.3.4-1~bpo13+1"
    assert replace(tree, deb=Path("linux-source-7.3_7.3.4-1%7ebpo13+1_all.deb")).version == (
        "linux-source-7.3_7.3.4-1~bpo13+1"
    )


def test_what_no_build_opens_is_not_unpacked_but_every_kconfig_is(tree: SourceTree) -> None:
    assert (tree.source / "one.c").read_text() == "one\n"
    assert (tree.source / "drivers/gpu/drm/Kconfig").exists()
    assert not list(tree.source.rglob("unwanted.*"))


def test_a_package_that_is_none_is_refused_and_leaves_nothing(deb: Path) -> None:
    deb.write_bytes(b"!<arch>\nnonsense")
    tree = SourceTree(deb)
    with pytest.raises(HostError, match=r"can't unpack linux-source-7\.3"):
        tree.unpack()
    assert not tree.source.exists()
    assert not list(tree.root.glob(".source*"))


def test_too_little_room_is_said_before_anything_is_unpacked(
    deb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.lab.kernel.source_tree._ROOM", 1 << 60)
    with pytest.raises(HostError, match=r"takes .* GiB in .* are free.*XDG_CACHE_HOME"):
        SourceTree(deb).unpack()


def test_exchanging_patches_touches_only_what_differs(tree: SourceTree, patch: Path) -> None:
    untouched = (tree.source / "two.c").stat().st_mtime_ns
    tree.patch([patch])
    assert (tree.source / "one.c").read_text() == "uno\n"
    time_patched = (tree.source / "one.c").stat().st_mtime_ns
    tree.patch([patch])
    assert (tree.source / "one.c").stat().st_mtime_ns == time_patched
    tree.patch([])
    assert (tree.source / "one.c").read_text() == "one\n"
    assert (tree.source / "two.c").stat().st_mtime_ns == untouched
    assert not list(tree.root.glob(".patch-*"))


def test_a_patch_half_exchanged_is_exchanged_by_the_next_run(tree: SourceTree, patch: Path) -> None:
    tree.patch([patch])
    (tree.source / "one.c").write_text("half")
    tree.patch([])
    assert (tree.source / "one.c").read_text() == "one\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("-one\n", "-eins\n"), "uno.patch doesn't apply to linux-source-7.3"),
        (("one.c", "gone.c"), "has no gone.c, which uno.patch would change"),
    ],
)
def test_a_patch_that_fits_no_more_is_named_and_changes_nothing(
    tree: SourceTree, patch: Path, change: tuple[str, str], message: str
) -> None:
    patch.write_text(PATCH.replace(*change))
    with pytest.raises(HostError, match=message):
        tree.patch([patch])
    assert (tree.source / "one.c").read_text() == "one\n"


def test_a_configuration_line_without_effect_is_an_error(tree: SourceTree) -> None:
    build.configure(tree, ["# why\nCONFIG_SMP=y\n", "CONFIG_KVM=y\n"])
    with pytest.raises(HostError, match="doesn't take CONFIG_NONSENSE=y; the option is unknown"):
        build.configure(tree, ["CONFIG_SMP=y\nCONFIG_NONSENSE=y\n"])


def test_missing_tools_are_all_named_at_once_with_their_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostError, match=r"apt-get install bc bison .*xz-utils"):
        build.compiler()


def test_a_kernel_is_built_once_and_found_without_network_or_tools(
    flavours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = BuiltKernel("mainline")
    assert not built.built()
    assert built.image().read_text() == "one\ntwo\nthree\nfour\n7.3.4-mainline\n"
    assert built.config().read_text() == "CONFIG_SMP=y\nCONFIG_KVM=y\n"
    assert built.provenance["source"] == "linux-source-7.3_7.3.4-1~bpo13+1"
    assert len(flavours.read_text().splitlines()) == 1
    monkeypatch.setenv("PATH", "/nonexistent")
    assert BuiltKernel("mainline").built()
    assert BuiltKernel("mainline").image() == built.image()
    assert len(flavours.read_text().splitlines()) == 1


@pytest.mark.usefixtures("flavours")
def test_another_flavour_rebuilds_what_its_patches_touch() -> None:
    BuiltKernel("mainline").image()
    image = BuiltKernel("rfc").image()
    assert image.read_text() == "uno\ntwo\nthree\nfour\n7.3.4-rfc\n"
    (root,) = (cache.root() / "kernel").glob("linux-source-*")
    assert compiled(root) == ["four.o", "one.o", "one.o", "three.o", "two.o"]


@pytest.mark.usefixtures("flavours")
def test_a_changed_configuration_is_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    first = BuiltKernel("mainline").image()
    less = replace(flavour.FLAVOURS["mainline"], fragments=("lab.config",))
    monkeypatch.setitem(flavour.FLAVOURS, "mainline", less)
    assert not BuiltKernel("mainline").built()
    assert BuiltKernel("mainline").image() != first


@pytest.mark.usefixtures("flavours")
def test_a_patch_that_changes_during_the_build_is_another_kernel(
    tree: SourceTree, patch: Path
) -> None:
    breakage(f"echo >>{patch}")
    assert tree.source.exists()
    BuiltKernel("rfc").image()
    assert not BuiltKernel("rfc").built()


def test_a_build_that_fails_says_why_and_where_to_read_on(tree: SourceTree) -> None:
    breakage("echo 'one.c:1:1: error: expected declaration'; exit 1")
    build.configure(tree, ["CONFIG_SMP=y\n"])
    with (
        tree.alone() as lock,
        pytest.raises(HostError, match=r"doesn't build: one.c:1:1: error: .*build\.log"),
    ):
        build.compile_image(tree, "mainline", lock)


@pytest.mark.usefixtures("flavours")
def test_a_full_disk_is_one_clear_error_and_the_cache_stays_usable(tree: SourceTree) -> None:
    root = breakage("[ $1 = three ] && echo 'three.o: No space left on device' && exit 1; exit 0")
    with pytest.raises(HostError, match=r"no space left in .*; free some, or set XDG_CACHE_HOME"):
        BuiltKernel("mainline").image()
    assert not list((tree.root.parent / "images").glob("*"))
    assert not list((tree.root.parent / "images").glob(".*"))
    (root / "breakage").unlink()
    assert BuiltKernel("mainline").image().exists()


_BUILD = """
import sys
from pathlib import Path
from vmm.lab.kernel import build
from vmm.lab.kernel.source_tree import SourceTree
tree = SourceTree(Path(sys.argv[1]))
with tree.alone() as lock:
    build.configure(tree, ["CONFIG_SMP=y"])
    print(build.compile_image(tree, "mainline", lock))
"""


@contextmanager
def building(tree: SourceTree) -> Iterator[subprocess.Popen[bytes]]:
    """Build in another process; if a test fails, end it and show what it said."""
    log = tree.root / "builder.log"
    with (
        log.open("wb") as said,
        subprocess.Popen(
            [sys.executable, "-c", _BUILD, str(tree.deb)], stdout=said, stderr=said
        ) as builder,
    ):
        try:
            yield builder
        except BaseException:
            print(log.read_text())  # noqa: T201
            builder.kill()
            raise


def until(builder: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """Wait for *condition*, for as long as the builder runs; pytest's own time limit applies."""
    while not condition():
        assert builder.poll() is None, "the build has ended"
        time.sleep(0.01)


def children(parent: int) -> list[int]:
    """Return the process identifiers of the children of *parent*, dead ones included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            pid, _, rest = stat.read_text().partition(" ")
            if int(rest.rpartition(")")[2].split()[1]) == parent:
                found.append(int(pid))
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_build_that_is_killed_resumes_where_it_was(
    tree: SourceTree, signal_number: signal.Signals
) -> None:
    root = breakage(
        "[ $1 = four ] || exit 0; echo $PPID >$0.pid; while [ -e $0 ]; do sleep 0.1; done"
    )
    pid = root / "breakage.pid"
    with building(tree) as builder:
        until(builder, lambda: pid.exists() and pid.read_text().endswith("\n"))
        shell = int(pid.read_text())
        until(builder, lambda: len(list((root / "build").glob(".*.cmd"))) == 3)  # all but four
        # make deletes the targets of commands whose end it has not noticed.
        until(builder, lambda: children(parent_of(shell)) == [shell])
        builder.send_signal(signal_number)
    (root / "breakage").unlink()
    argv = [sys.executable, "-c", _BUILD, str(tree.deb)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert Path(done.stdout.strip()).read_text().endswith("7.3.4-mainline\n")
    assert set(compiled(root)) == {"one.o", "two.o", "three.o", "four.o"}
    assert [compiled(root).count(name) for name in ("one.o", "two.o", "three.o")] == [1, 1, 1]


def test_no_make_outlives_an_interrupted_build(tree: SourceTree) -> None:
    root = breakage("echo $PPID > $0.pid; exec sleep 60")
    pid = root / "breakage.pid"
    with building(tree) as builder:
        until(builder, lambda: pid.exists() and pid.read_text().endswith("\n"))
        builder.send_signal(signal.SIGINT)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_an_unknown_flavour_is_the_users_error_and_names_the_known() -> None:
    with pytest.raises(UserError, match="no kernel gnu; it builds mainline, rfc, posted, percap"):
        BuiltKernel("gnu")
