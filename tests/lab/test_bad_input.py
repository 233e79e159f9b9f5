"""Errors about what a host refuses or lacks: one line that says what to do, and a status.

Errors that need no host are in tests/cli/test_run_errors.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.guest.flat_guest import POWER_OFF, assemble
from vmm.lab import cache
from vmm.lab.host import qemu
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import Completed

pytestmark = pytest.mark.lab

USER, HOST = 2, 3
PATIENCE = 300.0

AS_NOBODY = """
import os, sys
os.chmod("/dev/kvm", int(sys.argv[1], 8))
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def one_line(status: int, stderr: bytes, expected: int) -> str:
    """Check the form of an error message; return its line."""
    text = stderr.decode()
    assert status == expected, text
    assert text.startswith("pyvmm: "), text
    assert text.count("\n") == 1, text
    assert "; " in text, "it says what to do"
    return text.removeprefix("pyvmm: ").strip()


@pytest.fixture
def guest(tmp_path: Path) -> str:
    return str(assemble(tmp_path, POWER_OFF))


@pytest.fixture
def refusal(lab_host: Callable[[str], Host]) -> Callable[..., str]:
    """``refusal(argument...)`` returns the error of `pyvmm run` in a lab host."""

    def refusal(*arguments: str, status: int = USER, profile: str = "fwb") -> str:
        command = ["pyvmm", "run", "--host", "native", *arguments]
        done = lab_host(profile).run(command, timeout=PATIENCE)
        assert done.stdout == b""
        return one_line(done.status, done.stderr, status)

    return refusal


# --- inside ---------------------------------------------------------------------------------------


def test_memory_is_whole_pages_of_the_host(refusal: Callable[..., str], guest: str) -> None:
    line = refusal("--memory", "67109000B", guest)
    assert line.startswith("--memory: 67109000 bytes are not a multiple of the host's page of 4 ")


@pytest.mark.parametrize(
    ("memory", "why"),
    [
        ("8T", "8192 GiB are more than the 8191 GiB that KVM can have in one memory slot; "),
        ("1000T", "GiB that KVM can have in one memory slot; "),
        ("999999999999T", "bits of guest physical address that this host's KVM can map; "),
    ],
)
def test_more_memory_than_kvm_can_map(
    refusal: Callable[..., str], guest: str, memory: str, why: str
) -> None:
    line = refusal("--memory", memory, guest)
    assert line.startswith("--memory: ")
    assert why in line


def test_more_cpus_than_the_board_has_room_for(refusal: Callable[..., str], guest: str) -> None:
    line = refusal("--cpus", "124", guest)
    assert line.startswith("--cpus: 124 vCPUs are more than the 123 that this host's KVM allows; ")


@pytest.mark.profile("gicv2")
def test_more_cpus_than_a_gicv2_serves(refusal: Callable[..., str], guest: str) -> None:
    line = refusal("--cpus", "9", guest, profile="gicv2")
    assert "--cpus" in line
    assert " 8" in line


def test_a_bad_image_is_refused_natively_too(refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty.img").touch()
    line = refusal(str(tmp_path / "empty.img"))
    assert line.startswith(f"{tmp_path}/empty.img: the file is empty; ")


@pytest.fixture
def as_nobody(lab_host: Callable[[str], Host]) -> Iterator[Callable[..., Completed]]:
    """``as_nobody(mode, argument...)`` runs `pyvmm run` as a user without rights.

    *mode* is the mode of /dev/kvm during the run.
    """
    host = lab_host("fwb")

    def run(mode: str, *arguments: str) -> Completed:
        command = ["python3", "-c", AS_NOBODY, mode, "pyvmm", "run", *arguments]
        return host.run(command, timeout=PATIENCE)

    yield run
    host.run(["chmod", "600", "/dev/kvm"])


def test_kvm_that_we_may_not_use(as_nobody: Callable[..., Completed], tmp_path: Path) -> None:
    done = as_nobody("600", str(tmp_path / "none"))
    line = one_line(done.status, done.stderr, HOST)
    assert line.startswith("cannot open /dev/kvm: Permission denied; join the group that owns it")


def test_a_file_that_may_not_be_read(as_nobody: Callable[..., Completed]) -> None:
    # A file of the host's own: whether nobody can reach one of ours depends on its directories.
    done = as_nobody("666", "/proc/1/mem")
    line = one_line(done.status, done.stderr, USER)
    assert line.startswith("/proc/1/mem: Permission denied; ")


def test_a_host_without_kvm(lab_host: Callable[[str], Host], guest: str) -> None:
    hidden = "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && "
    hidden += f"exec pyvmm run --host native {guest}"
    done = lab_host("fwb").run(["unshare", "-m", "sh", "-c", hidden], timeout=PATIENCE)
    line = one_line(done.status, done.stderr, HOST)
    assert line.startswith("cannot open /dev/kvm: No such file or directory; ")


# --- outside: a lab that cannot start ------------------------------------------------------------


def outside(
    arguments: list[str], environment: dict[str, str], prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*prefix, sys.executable, "-c", "from vmm.cli import main; main()", *arguments],
        check=False,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=2 * PATIENCE,
    )


def last_line(stderr: bytes) -> bytes:
    """Return the error: lines before it report progress."""
    return stderr.splitlines(keepends=True)[-1]


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may take the network away")


@needs_root
def test_no_emulator_and_no_network(tmp_path: Path, guest: str) -> None:
    done = outside(
        ["run", "--host", "lab", guest],
        {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        prefix=("unshare", "--net"),
    )
    line = one_line(done.returncode, last_line(done.stderr), HOST)
    assert b"Traceback" not in done.stderr
    assert "mirror" in line or "network" in line or "resolv" in line, line


@needs_root
def test_a_full_disk_leaves_the_cache_usable(tmp_path: Path) -> None:
    """The disk is a small tmpfs; the emulator does not fit on it until it gets more room."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    script = f"""
set -e
mount -t tmpfs -o size=$1 none {mounted}
for kept in apt debs kernels native rootfs sysroots; do  # not all of it once more
    mkdir -p {mounted}/pyvmm/$kept {cache.root()}/$kept
    mount --bind {cache.root()}/$kept {mounted}/pyvmm/$kept
done
shift
set +e
"$@"; first=$?
find {mounted}/pyvmm/tools -name '*.partial' >&2
mount -o remount,size=3G {mounted}
"$@"; second=$?
echo $first $second
"""
    program = [sys.executable, "-c", "from vmm.cli import main; main()", "lab", "build"]
    if shutil.which(qemu.PROGRAM):
        pytest.skip("this machine's own emulator leaves too little to write")
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script, "bash", "30M", *program],
        check=False,
        capture_output=True,
        env={**os.environ, "XDG_CACHE_HOME": str(mounted)},
        timeout=2 * PATIENCE,
    )
    stderr = done.stderr.decode()
    assert done.stdout.split()[-2:] == [b"3", b"0"], stderr
    assert "Traceback" not in stderr
    assert ".partial" not in stderr, "nothing half-made is left"
    errors = [line for line in stderr.splitlines() if "no space" in line.lower()]
    assert len(errors) == 1, stderr
    assert errors[0].startswith("pyvmm: ")
    assert "; " in errors[0], "it says what to do"
