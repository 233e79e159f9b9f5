"""--host: where a command runs, and what its files are called there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from vmm.cli import place, pyvmm
from vmm.cli.ends import lend
from vmm.config import MachineConfig, codec
from vmm.config.control import ControlConfig
from vmm.config.disk import DiskConfig
from vmm.config.firmware import FlashConfig
from vmm.config.net import NetConfig, NetKind
from vmm.config.pmem import PmemConfig, parse_pmem
from vmm.config.share import ShareConfig
from vmm.config.vfio import VfioConfig
from vmm.errors import HostError, UserError
from vmm.lab.host import client
from vmm.lab.host.relay import Joint
from vmm.virtio.pmem_file import PmemFile


@pytest.mark.parametrize(
    ("typed", "there"),
    [
        ("/home/me/guest.img", "/home/me/guest.img"),
        ("guest.img", "guest.img"),
        ("/var/guest.img", "/host/var/guest.img"),
        ("/usr/d:tag,ro", "/host/usr/d:tag,ro"),
        ("/d", "/d"),
    ],
)
def test_a_file_gets_the_name_that_the_lab_host_has_for_it(
    monkeypatch: pytest.MonkeyPatch, typed: str, there: str
) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setattr(os.path, "realpath", lambda path: str(Path("/home/me") / path))
    monkeypatch.setattr(os.path, "abspath", lambda path: str(Path("/home/me") / path))
    assert place.visible(Path(typed)) == Path(there)


def test_a_link_is_followed_here_because_it_may_lead_elsewhere_there(tmp_path: Path) -> None:
    """Debian's AAVMF_CODE.fd is one."""
    link = tmp_path / "guest.img"
    link.symlink_to("/usr/share/guest.img")
    assert place.visible(link) == Path("/host/usr/share/guest.img")


# --- what is sent -----------------------------------------------------------------------------


@pytest.fixture
def opened() -> list[Path]:
    """Return the files that the lab host could write."""
    return []


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, opened: list[Path]) -> Callable[..., list[str]]:
    """``sent(word...)`` is the command line that runs in the lab host instead of this one."""
    commands: list[tuple[str, list[str], list[str]]] = []

    def run_in_lab(
        profile: str,
        argv: list[str],
        packages: list[str],
        joints: list[Joint] | tuple[()],
        *,
        writable: Sequence[Path],
        start: bool,
    ) -> int:
        assert start
        opened.extend(writable)
        commands.append((profile, argv, packages))
        return 7

    monkeypatch.setattr(client, "run_in_lab", run_in_lab)

    def send(*words: str) -> list[str]:
        done = CliRunner().invoke(pyvmm, words)
        assert done.exit_code == 7, done.output
        (profile, argv, _) = commands.pop()
        assert profile == "nofwb"
        assert argv[0] == "pyvmm"
        assert argv[-2:] == ["--host", "native"]
        return argv[1:-2]

    return send


@pytest.mark.parametrize(
    ("typed", "there"),
    [
        (["probe", "--host", "lab:nofwb"], ["probe"]),
        (["probe", "--host=lab:nofwb", "--all"], ["probe", "--all"]),
        (
            ["verify", "--bar", "1:0.0:4", "--host", "lab:nofwb", "--bar=2:0.0:0", "--uapi=rfc"],
            ["verify", "--bar", "1:0.0:4", "--bar", "2:0.0:0", "--uapi", "rfc"],
        ),
        (
            ["map", "-m", "1G", "--host=lab:nofwb", "--svg", "/usr/map.svg"],
            ["map", "--memory", "1G", "--svg", "/host/usr/map.svg"],
        ),
        (["vfio", "--host=lab:nofwb", "list", "--json"], ["vfio", "list", "--json"]),
        (
            ["vfio", "bind", "0000:01:00.0", "--host", "lab:nofwb", "--driver", "vfio-pci"],
            ["vfio", "bind", "--driver", "vfio-pci", "0000:01:00.0"],
        ),
    ],
)
def test_the_command_in_the_lab_host_is_the_same_without_host(
    sent: Callable[..., list[str]], typed: list[str], there: list[str]
) -> None:
    assert sent(*typed) == there


@pytest.fixture
def run(sent: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``run(word...)`` is the request that arrives in the lab host."""
    monkeypatch.setattr("vmm.cli.run._check_files", lambda config: None)  # there are none

    def arrived(*words: str) -> dict[str, Any]:
        command, option, text = sent("run", "--host=lab:nofwb", *words)
        assert (command, option) == ("run", "--request")
        return codec.loads(text)

    return arrived


def test_a_machine_is_sent_as_data(run: Callable[..., Any]) -> None:
    assert run("/usr/guest.img", "--escape", "none", "-c", "2") == {
        "config": MachineConfig(image=Path("/host/usr/guest.img"), cpus=2, control=ControlConfig()),
        "events": None,
        "escape": None,
        "filtered": False,
        "device_tree": None,
        "dry": False,
        "milliseconds": None,
        "trace": None,
        "record_ioctls": None,
    }


def test_only_what_is_a_path_is_translated(run: Callable[..., Any]) -> None:
    disk = "--disk=/usr/d,ro,format=raw,serial=/usr/d"
    options = [disk, "--cmdline", "file=/usr/d", "--share=/usr/d:/usr/d", "--net=tap=d,bridge=/usr"]
    config = run("/usr/d", *options, "--vfio=1:0.0,rom=/usr/d")["config"]
    there = Path("/host/usr/d")
    assert config == MachineConfig(
        control=ControlConfig(),
        image=there,
        cmdline="file=/usr/d",
        disks=(DiskConfig(there, read_only=True, format="raw", serial="/usr/d"),),
        shares=(ShareConfig(there, "/usr/d"),),
        nets=(NetConfig("tap=d,bridge=/usr", NetKind.TAP, "d", bridge="/usr"),),
        vfio=(VfioConfig("0000:01:00.0", rom=there),),
    )


def test_a_disk_behind_a_link_is_the_file_itself(run: Callable[..., Any], tmp_path: Path) -> None:
    image, link = tmp_path / "disk.img", tmp_path / "link"
    image.touch()
    link.symlink_to(image)
    config = run("a", "--disk", f"{link},ro,queues=2,format=raw")["config"]
    assert config.disks == (DiskConfig(image, read_only=True, queues=2, format="raw"),)


@pytest.mark.parametrize("options", ["", ",ro"])
def test_firmware_behind_a_link_is_the_file_itself(
    run: Callable[..., Any], tmp_path: Path, options: str
) -> None:
    path, link = tmp_path / "a.fd", tmp_path / "link.fd"
    link.symlink_to(path)
    config = run("--firmware", str(link), f"--flash={link}{options}")["config"]
    assert config.firmware == path
    assert config.flash == FlashConfig(path, bool(options))


@pytest.mark.parametrize("options", ["", ",ro", ",size=2M"])
def test_persistent_memory_is_the_file_where_it_can_be_mapped(
    run: Callable[..., Any], tmp_path: Path, options: str
) -> None:
    path, link = tmp_path / "memory", tmp_path / "link"
    path.write_bytes(bytes(4 << 20))
    link.symlink_to(path)
    config = run("a", f"--pmem={link}{options}")["config"]
    size = 2 << 20 if "size" in options else 0
    there = Path(f"/run/mapped{path}")
    assert config.pmems == (PmemConfig(path, options == ",ro", size, there),)


def test_the_lab_host_can_write_the_files_that_are_named(
    run: Callable[..., Any], opened: list[Path], tmp_path: Path
) -> None:
    disk, events, memory = (tmp_path / name for name in ("disk", "events", "memory"))
    disk.write_bytes(bytes(4096))
    run("a", f"--disk={disk},format=raw", f"--events={events}", f"--pmem={memory},size=4M")
    assert {disk, events, memory} <= set(opened)
    assert Path("/") not in opened


def test_persistent_memory_is_made_and_locked_here(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "memory"
    in_lab, found = client.run_in_lab, []

    def try_lock(*given: Any, **more: Any) -> int:
        with pytest.raises(UserError, match=f"--pmem {path}: another machine uses it"):
            PmemFile(PmemConfig(path))
        found.append(path.stat().st_size)
        return in_lab(*given, **more)

    monkeypatch.setattr(client, "run_in_lab", try_lock)
    run("a", f"--pmem={path},size=4M")
    assert found == [4 << 20]
    PmemFile(PmemConfig(path)).close()


@pytest.mark.parametrize("command", [["run", "a"], ["map"]])
def test_errors_of_persistent_memory_have_the_users_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]
) -> None:
    monkeypatch.setattr("vmm.cli.run._check_files", lambda config: None)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(pyvmm, [*command, "--host=lab", "--pmem=none"])
    assert str(done.exception).startswith("--pmem none: No such file or directory; name a file")


def test_a_block_device_of_this_machine_cannot_be_persistent_memory_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stat, "S_ISBLK", stat.S_ISCHR)  # a block device is not in every container
    with ExitStack() as owned, pytest.raises(UserError, match="a lab host does not reach this"):
        lend([PmemConfig(Path("/dev/null"))], owned)


def test_the_map_has_the_same_file(sent: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "a,b"
    there = f"/run/mapped{tmp_path}/a,,b"
    typed = str(path).replace(",", ",,")
    words = sent("map", "--host=lab:nofwb", f"--pmem={typed},size=2M")
    assert words == ["map", "--pmem", f"{there},size=2097152B"]
    assert parse_pmem(words[2]) == PmemConfig(Path(there.replace(",,", ",")), size=2 << 20)


def test_events_go_to_the_users_file(run: Callable[..., Any], tmp_path: Path) -> None:
    events = tmp_path / "events.json"
    assert run("a", "--events", str(events))["events"] == events
    assert events.exists(), "that it can be written is known before a host starts"


def test_a_request_is_not_for_people() -> None:
    assert "--request" not in CliRunner().invoke(pyvmm, ["run", "--help"]).output


# --- which host -------------------------------------------------------------------------------


def test_a_host_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="--host moon: no such host; use auto, native, lab"):
        place.is_native("moon")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``machine(name)`` makes this machine one whose `uname -m` is *name*."""

    def become(name: str) -> None:
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=name))

    return become


@pytest.mark.parametrize(
    "command", [["run", "none.img"], ["map"], ["probe"], ["verify", "--bar=1:0.0:4"]]
)
def test_a_machine_that_is_not_arm64_says_so_before_anything_else(
    machine: Callable[[str], None], command: list[str]
) -> None:
    """Its KVM would be asked for a GIC, and the device tree blamed for it."""
    machine("x86_64")
    done = CliRunner().invoke(pyvmm, [*command, "--host", "native"])
    assert isinstance(done.exception, HostError), done.output
    assert str(done.exception) == "--host native: this machine is not arm64; use --host lab"


def test_pci_devices_can_be_listed_on_any_machine(machine: Callable[[str], None]) -> None:
    machine("x86_64")
    assert place.is_native("native", any_machine=True)


def test_native_and_lab_are_what_they_say(machine: Callable[[str], None]) -> None:
    machine("aarch64")
    assert place.is_native("native")
    assert not place.is_native("lab")
    assert not place.is_native("lab:nofwb")
