"""What a sealed process can no longer do, tried by one; each trial works without the seal."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.recorded import Recorded
from vmm._native import ffi, lib
from vmm.broker import Broker
from vmm.broker.program import ENVIRONMENT
from vmm.coherence import vma
from vmm.memory import Mapping, Region
from vmm.virtio.vhost.daemon import Command, Daemon

PATIENCE = 30.0
NOBODY = 65534

ATTACK = """
import ctypes, mmap, os, resource, sys
from vmm._native import lib
libc = ctypes.CDLL(None, use_errno=True)
sealed = sys.argv[1] == "sealed"
data = mmap.mmap(-1, mmap.PAGESIZE)
address = ctypes.addressof(ctypes.c_char.from_buffer(data))
resource.setrlimit(resource.RLIMIT_CORE, (mmap.PAGESIZE, mmap.PAGESIZE))
if sealed:
    from vmm.machine.seal import seal
    seal()
both = mmap.PROT_WRITE | mmap.PROT_EXEC
changed = libc.mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
new = libc.mmap(None, mmap.PAGESIZE, both, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
print("mprotect", changed == 0)
print("mmap", new not in (None, ctypes.c_void_p(-1).value))
print("core", resource.getrlimit(resource.RLIMIT_CORE) != (0, 0))
sys.stdout.flush()
os.setresgid(NOBODY, NOBODY, NOBODY)
os.setresuid(NOBODY, NOBODY, NOBODY)
os.execv(sys.argv[2], [sys.argv[2], "-u"])
""".replace("NOBODY", str(NOBODY))


def attack(how: str, program: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, how, str(program)],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a set-user-ID program of root's")
def test_a_sealed_process_gains_neither_code_nor_privileges() -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own are closed to others
        Path(place).chmod(0o755)
        program = Path(place) / "id"
        shutil.copy(shutil.which("id") or "", program)
        program.chmod(0o4755)
        assert attack("open", program) == ["mprotect True", "mmap True", "core True", "0"]
        refused = ["mprotect False", "mmap False", "core False", str(NOBODY)]
        assert attack("sealed", program) == refused


def test_a_daemon_is_sealed_and_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the user's")
    monkeypatch.setenv("TMPDIR", "/tmp")
    events = Recorded()
    script = "grep NoNewPrivs /proc/self/status; ulimit -c; env | cut -d= -f1"
    argv = ["/bin/sh", "-c", f"({script}) >&2"]
    with Broker() as broker, Daemon(Command(argv, broker), events) as program:
        assert program.wait(PATIENCE)
    privileges, core, *names = [
        fields["line"] for event, fields in events.seen if event == "daemon-said"
    ]
    assert str(privileges).split() == ["NoNewPrivs:", "1"]
    assert core == "0"
    shells = {"PWD", "SHLVL", "_", "OLDPWD"}
    assert "TMPDIR" in names
    assert set(names) - shells <= {name.decode() for name in ENVIRONMENT}


def test_what_starts_a_daemon_is_not_sealed_by_it() -> None:
    """Until it has become its program, a daemon shares the memory of the process that starts it."""
    with Daemon(Command(["/bin/true"]), Recorded()) as program:
        assert program.wait(PATIENCE)
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        address = int(ffi.cast("uintptr_t", ffi.from_buffer("uint8_t[]", memory)))
        both = mmap.PROT_READ | mmap.PROT_EXEC
        assert lib.pyvmm_protect(address, mmap.PAGESIZE, both) == 0


@pytest.mark.parametrize("make", [Mapping.anonymous, Mapping.memfd])
def test_guest_memory_is_in_no_core_dump(make: type[Mapping]) -> None:
    with make(4 << 20) as mapping:  # type: ignore[call-arg]
        behind = vma.find(Region(0, mapping.view).host_address)
        assert behind is not None
        assert "dd" in behind.flags
