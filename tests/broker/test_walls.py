"""Walls around a daemon: what it reaches once a guest has taken it over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vmm.broker import Broker, walls

PYTHON = os.path.realpath(sys.executable)
"""The attacker: its libraries are where a daemon's are."""

REPOSITORY = Path(__file__).parents[2]

ATTACK = """
import ctypes, errno, json, os, socket, sys

def tried(what):
    try:
        return what() or "done"
    except OSError as error:
        return errno.errorcode[error.errno]

def call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def read(path):
    return open(path, encoding="utf-8", errors="replace").readline()

def write(path):
    with open(path, "r+") as file:
        file.write("changed")

own, base, other, moved = sys.argv[1:]
numbers = {"x86_64": (101, 310, 165, 272), "aarch64": (117, 270, 40, 97)}[os.uname().machine]
print(json.dumps({
    "root": sorted(os.listdir("/")),
    "directory": sorted(os.listdir(os.path.dirname(own))),
    "write own": tried(lambda: write(own)),
    "read base": tried(lambda: read(base)),
    "write base": tried(lambda: write(base)),
    "read other": tried(lambda: read(other)),
    "read moved": tried(lambda: read(moved)),
    "read passwd": tried(lambda: read("/etc/passwd")),
    "make a file": tried(lambda: os.open("/x", os.O_CREAT | os.O_WRONLY)),
    "open a library": tried(lambda: os.open(os.__file__, os.O_WRONLY)),
    "remove": tried(lambda: os.unlink(own)),
    "connect": tried(lambda: socket.socket().connect(("127.0.0.1", 1))),
    "unix": tried(lambda: socket.socket(socket.AF_UNIX)),
    "fork": tried(os.fork),
    "signal": tried(lambda: os.kill(os.getppid(), 9)),
    "ptrace": tried(lambda: call(numbers[0], 16, os.getppid(), 0, 0)),
    "read memory": tried(lambda: call(numbers[1], os.getppid(), 0, 0, 0, 0, 0)),
    "mount": tried(lambda: call(numbers[2], 0, 0, 0, 0, 0)),
    "unshare": tried(lambda: call(numbers[3], 0x10000000)),
    "status": dict(line.split(":\\t") for line in sys.stdin.read().splitlines() if ":\\t" in line),
}), file=sys.stderr)
"""

RUN = """
import os, select, sys
from vmm.broker import Broker, walls
own, base, other, moved, attack, python = sys.argv[1:]
with Broker() as broker:
    argv = [python, "-I", "-S", "-c", attack, own, base, other, moved]
    number, problem = broker.enclose(argv, [(own, True), (base, False)])
    assert not problem, problem
    broker.freeze()
    to_read, to_write = os.pipe()
    pid, pidfd = broker.start(number, [to_read, broker.null, 2])
    for name in ("mnt", "net", "ipc", "user"):
        ours, its = (os.readlink(f"/proc/{each}/ns/{name}") for each in ("self", pid))
        os.write(to_write, f"{name}:\\t{int(ours != its)}\\n".encode())
    os.write(to_write, open(f"/proc/{pid}/status", "rb").read())
    os.close(to_write); os.close(to_read)
    assert select.select([pidfd], [], [], 60)[0]
"""


@pytest.fixture(params=[0, 1000], ids=["root", "user"])
def attacked(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Return what a program behind walls could do, by what it tried."""
    if os.geteuid():
        pytest.skip("takes root, to become another user")
    user = request.param
    places = (REPOSITORY, *REPOSITORY.parents)
    if user and not all(place.stat().st_mode & 0o5 == 0o5 for place in places):
        pytest.skip("another user may not read this tree")
    tmp_path.chmod(0o755)
    for each in tmp_path.parents:
        if "pytest" in str(each):
            each.chmod(0o755)
    paths = [tmp_path / name for name in ("own", "base", "other", "link")]
    for path in paths[:3]:
        path.write_text(f"this is {path.name}")
        path.chmod(0o600)
        os.chown(path, user or 12345, -1)
    paths[3].symlink_to(paths[2])
    command = [sys.executable, "-c", RUN, *map(str, paths), ATTACK, PYTHON]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PYTHONPATH": str(REPOSITORY)},
        **({"user": user, "group": user, "extra_groups": []} if user else {"extra_groups": [4711]}),
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    said["user"] = user
    said["written"] = paths[0].read_text()
    said["kept"] = paths[1].read_text()
    return said


def test_a_daemon_reaches_its_own_files_and_no_others(attacked: dict[str, Any]) -> None:
    said = attacked
    assert said["directory"] == ["base", "own"]
    absent = {"home", "proc", "root", "sys", "var"} - {Path(PYTHON).parts[1]}
    assert not absent & {*said["root"]}
    assert (said["write own"], said["written"]) == ("done", "changed own")
    assert said["read base"] == said["kept"] == "this is base"
    assert said["write base"] == "EROFS"
    assert said["read other"] == said["read moved"] == said["read passwd"] == "ENOENT"
    assert said["make a file"] == "EROFS"
    assert said["open a library"] in {"EROFS", "EACCES"}


def test_a_daemon_may_do_what_a_disk_takes_and_no_more(attacked: dict[str, Any]) -> None:
    refused = {
        "remove",
        "connect",
        "unix",
        "fork",
        "signal",
        "ptrace",
        "read memory",
        "mount",
        "unshare",
    }
    assert {what: attacked[what] for what in refused} == dict.fromkeys(refused, "ENOSYS")


def test_a_daemon_is_nobodys_and_has_namespaces(attacked: dict[str, Any]) -> None:
    status, root = attacked["status"], not attacked["user"]
    assert {status[name] for name in ("mnt", "net", "ipc")} == {"1"}
    assert status["user"] == ("0" if root else "1")
    users = {*map(int, status["Uid"].split()), *map(int, status["Gid"].split())}
    assert users == ({0x7000_0000 + int(status["Pid"])} if root else {1000})
    assert status["Groups"].split() == []
    override = 1 << 1 if root else 0  # CAP_DAC_OVERRIDE: its files are not its own
    for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"):
        assert int(status[name], 16) == override, name
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")


def test_a_file_that_another_has_replaced_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with Broker() as broker:
        number, problem = broker.enclose([PYTHON, "-c", ""], [(str(path), True)])
        assert not problem
        broker.freeze()
        path.rename(tmp_path / "old")
        path.write_text("another's")
        with pytest.raises(OSError, match="Stale"):
            broker.start(number, [broker.null] * 3)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with Broker() as broker, pytest.raises(FileNotFoundError):
        broker.enclose(["/bin/true"], [(str(tmp_path / "file"), True)])


def test_without_walls_it_is_started_as_it_is() -> None:
    with Broker() as broker:
        broker.walls = False
        number, problem = broker.enclose(["/bin/sleep", "1000"], [])
        assert not problem
        pid, pidfd = broker.start(number, [broker.null] * 3)
        os.close(pidfd)
        assert "\nSeccomp:\t0\n" in Path(f"/proc/{pid}/status").read_text()
        ours, its = (Path(f"/proc/{each}/ns/mnt").readlink() for each in ("self", pid))
        assert ours == its


def test_a_library_that_is_a_link_to_elsewhere_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a lab host, or where each package has a directory of its own."""
    for name in ("libraries", "package"):
        (tmp_path / name).mkdir()
    (listed,) = {
        match.decode()
        for match in walls.LISTED.findall(
            subprocess.run(["ldd", "/bin/sleep"], capture_output=True, check=True).stdout
        )
        if b"libc.so" in match
    }
    moved = tmp_path / "package/libc.so.6"
    shutil.copy(listed, tmp_path / "package/libc-1.so")
    moved.symlink_to("libc-1.so")
    (tmp_path / "libraries/libc.so.6").symlink_to(moved)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "libraries"))
    known = (*walls.LIBRARIES, str(tmp_path / "libraries"))
    monkeypatch.setattr(walls, "LIBRARIES", known)
    found = walls.libraries("/bin/sleep")
    assert str(moved) in found
    assert not any(path.startswith("/usr/lib/") for path in found)
