"""What `pyvmm run` imports before the guest runs: a module costs 10 ms in an emulated host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RUN = """
import atexit, os, sys
atexit.register(lambda: print(*sys.modules))
arm64 = os.uname_result((*os.uname()[:4], "aarch64"))
os.uname = lambda: arm64
sys.argv = ["pyvmm", "run", "--host", "native", "--memory", "64M", "/no/such/image"]
from vmm.cli import main
main()
"""


@pytest.fixture(scope="module")
def imported() -> set[str]:
    command = [sys.executable, "-I", "-c", RUN]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode in {2, 3}, done.stderr
    return set(done.stdout.split())


def test_a_machine_is_imported_before_its_image_is_looked_at(imported: set[str]) -> None:
    assert {"vmm.machine.machine", "vmm.loop", "vmm.machine.power_cycle"} <= imported


@pytest.mark.parametrize(
    "module",
    [
        "cffi",  # the extension needs _cffi_backend only
        "structlog",  # for --events
        "subprocess",
        "tempfile",
        "vmm.coherence",  # for --bar and --memory-write-back
        "vmm.machine.virtio_devices",
        "vmm.config.disk",  # each option's is for who gives that option
        "vmm.config.net",
        "vmm.config.vfio",
        "vmm.lab",
        "vmm.library",
        "vmm.passthrough",
        "vmm.pci",
        "vmm.vfio",
        "vmm.virtio",
    ],
)
def test_what_a_plain_guest_does_not_need_is_not_imported(module: str, imported: set[str]) -> None:
    assert module not in imported


@pytest.mark.parametrize(
    "module", ["email", "importlib.metadata", "tempfile", "vmm.vfio", "zipfile"]
)
def test_the_control_socket_does_not_bring_what_few_machines_need(module: str) -> None:
    code = "import sys, vmm.control.control; print(*sys.modules)"
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert module not in done.stdout.split()


def test_files_that_import_in_functions_are_listed_in_one_place() -> None:
    """pyproject.toml lists them with a reason; marks on lines would hide new ones."""
    mark = "noqa: PLC" + "0415"
    parts = ("vmm", "tests", "scripts", "examples", "cdefs")
    sources = (path for part in parts for path in (ROOT / part).rglob("*") if path.is_file())
    scripts = (path for path in sources if path.suffix in {"", ".py"})
    assert [path for path in scripts if mark in path.read_text(errors="replace")] == []


def test_a_machine_may_have_as_many_descriptors_as_the_host_lets_it() -> None:
    """The soft limit is for programs that use select(2); 64 queues of eight disks exceed it."""
    script = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))
import atexit
atexit.register(lambda: print(*resource.getrlimit(resource.RLIMIT_NOFILE)))
arm64 = os.uname_result((*os.uname()[:4], "aarch64"))
os.uname = lambda: arm64
sys.argv = ["pyvmm", "run", "--host", "native", "--memory", "64M", "/no/such/image"]
from vmm.cli import main
main()
"""
    command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.split() == ["4096", "4096"], done.stderr
