"""`pyvmm lab`: what its commands say, and which host they mean. No host is started."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vmm.cli import lab, pyvmm
from vmm.errors import UserError
from vmm.lab.host import packages as packages_module
from vmm.lab.host import state
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.profiles import DEFAULT, PROFILES
from vmm.lab.host.session import NotStartedError


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def run(*words: str) -> Result:
    return CliRunner().invoke(pyvmm, ["lab", *words])


def record(name: str, *, keep: bool) -> None:
    directory = state.hosts_directory() / name
    directory.mkdir()
    state.save(directory, state.State("fwb", state.myself(), keep))


# --- profiles ---------------------------------------------------------------------------------


def test_profiles_are_two_aligned_columns() -> None:
    lines = run("profiles").output.splitlines()
    column = max(map(len, PROFILES)) + 2
    assert [line[:column].strip() for line in lines] == list(PROFILES)
    assert all(line[column - 1] == " " != line[column] for line in lines)


def test_profiles_are_json_for_programs() -> None:
    found = json.loads(run("profiles", "--json").output)
    assert [entry["profile"] for entry in found] == list(PROFILES)
    assert [entry["profile"] for entry in found if entry["default"]] == [DEFAULT]
    assert found[0]["cpus"] == 2
    assert found[0]["memory"] == 4 << 30


# --- which host -------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Return the hosts and commands that were to be run."""
    found: list[tuple[str, list[str]]] = []

    def run_in_lab(profile: str, argv: list[str], *_: Any) -> int:
        found.append((profile, list(argv)))
        return 0

    monkeypatch.setattr(lab, "run_in_lab", run_in_lab)
    return found


@pytest.mark.parametrize(
    ("words", "profile", "command"),
    [
        (["exec", "nofwb", "--", "uname", "-a"], "nofwb", ["uname", "-a"]),
        (["exec", "nofwb", "uname", "-a"], "nofwb", ["uname", "-a"]),
        (["exec", "--", "uname", "-a"], DEFAULT, ["uname", "-a"]),
        (["exec", "--", "vfio", "--", "x"], DEFAULT, ["vfio", "--", "x"]),
        (["shell", "nofwb"], "nofwb", ["sh"]),
        (["shell"], DEFAULT, ["sh"]),
    ],
)
def test_without_a_profile_it_is_the_one_of_run(
    ran: list[tuple[str, list[str]]], words: list[str], profile: str, command: list[str]
) -> None:
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert ran == [(profile, command)]


def test_a_word_that_is_no_profile_is_not_taken_for_a_command(
    ran: list[tuple[str, list[str]]],
) -> None:
    """`lab exec nofbw -- sh` must not start another host and look for a program nofbw."""
    done = run("exec", "uname", "-a")
    assert ran == []
    assert isinstance(done.exception, UserError)
    assert "there is no lab profile 'uname'" in str(done.exception)


@pytest.mark.parametrize(
    ("words", "profile", "packages"),
    [
        (["nofwb", "passt"], "nofwb", ("passt",)),
        (["passt", "virtiofsd"], DEFAULT, ("passt", "virtiofsd")),
    ],
)
def test_packages_are_installed_in_the_host_of_run(
    monkeypatch: pytest.MonkeyPatch, words: list[str], profile: str, packages: tuple[str, ...]
) -> None:
    monkeypatch.setattr(Host, "find", lambda name: name)
    taken: list[tuple[str, tuple[str, ...]]] = []
    monkeypatch.setattr(packages_module, "install", lambda host, names: taken.append((host, names)))
    assert run("install", *words).exit_code == 0
    assert taken == [(profile, packages)]


def test_a_profile_alone_is_no_package() -> None:
    done = run("install", "nofwb")
    assert isinstance(done.exception, UserError)
    assert str(done.exception) == "pyvmm lab install nofwb: which packages?; name Debian's"


# --- up and down ------------------------------------------------------------------------------


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``up(profile...)`` is what `pyvmm lab up` says."""
    running: set[str] = set()

    def host(name: str) -> Any:
        return SimpleNamespace(
            agent=SimpleNamespace(
                install_tree=lambda: None,
                allow=lambda paths: running.update(map(str, paths)),
            ),
            record=SimpleNamespace(boot_seconds=7.0),
        )

    def start(name: str, *, keep: bool) -> Any:
        assert keep
        running.add(name)
        return host(name)

    monkeypatch.setattr(Host, "start", start)
    monkeypatch.setattr(Host, "find", lambda name: host(name) if name in running else None)

    def up(*words: str) -> str:
        output = run("up", *words).output
        assert {word for word in words if "/" in word} <= running, "can be written"
        return output

    return up


def test_up_when_it_is_up_says_so(up: Callable[..., str]) -> None:
    assert up("nofwb") == "nofwb is up (it took 7.0 s)\n"
    assert up("nofwb", "--writable", "/a", "--writable", "/b/c") == "nofwb is up already\n"
    assert up() == f"{DEFAULT} is up (it took 7.0 s)\n"


def test_down_ends_the_host_of_run_and_says_so() -> None:
    record(DEFAULT, keep=True)
    record("nofwb", keep=True)
    assert run("down").output == f"{DEFAULT} is down\n"
    assert [directory.name for directory, _ in state.hosts()] == ["nofwb"]


def test_down_when_it_is_down_says_so() -> None:
    assert run("down", "nofwb").output == "nofwb was not up\n"
    assert run("down", "--all").output == "no lab host runs\n"


def test_down_all_names_what_it_ends_and_whose_it_was() -> None:
    record("nofwb", keep=True)
    record("fwb.1.abc", keep=False)
    pid = os.getpid()
    assert run("down", "--all").output == (
        f"fwb.1.abc is down; it was for one command, process {pid}\nnofwb is down\n"
    )


def test_down_all_leaves_the_hosts_of_other_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each user's records are in a private directory of the user's."""
    record("nofwb", keep=True)
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "other"))
    assert run("down", "--all").output == "no lab host runs\n"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert [directory.name for directory, _ in state.hosts()] == ["nofwb"]


# --- exec -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "status"),
    [("No such file or directory", 127), ("Permission denied", 126), ("Exec format error", 126)],
)
def test_a_command_that_cannot_be_started_has_a_shells_status(why: str, status: int) -> None:
    error = NotStartedError(f"no-such-command: {why}")
    assert error.exit_code == status
    assert str(error) == f"in the lab host: no-such-command: {why}"
