"""Shared directories served by the real virtiofsd, with a driver of ours."""

from __future__ import annotations

import errno
import os
import random
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.recorded import Recorded
from tests.virtio.block.blk_driver import wait
from tests.virtio.fs.fuse_driver import (
    FORGET,
    GETATTR,
    HIPRIO,
    MKDIR,
    NOT_CONNECTED,
    PLACES,
    Client,
)
from tests.virtio.ring_driver import Memory
from tests.virtio.vhost import debian_daemons as foreign_programs
from vmm.config.share import TAG_BYTES, ShareConfig, parse_share, parse_shares
from vmm.errors import HostError, UserError
from vmm.memory import Mapping
from vmm.virtio.fs import virtiofsd
from vmm.virtio.fs.open import open_share
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport
from vmm.virtio.vhost import user_device
from vmm.virtio.vhost.user import DaemonRefusedError

pytestmark = pytest.mark.timeout(300)

CONTENT = random.Random(3).randbytes(0x4000)  # noqa: S311


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory(Mapping.memfd)
    yield memory
    memory.close()


@pytest.fixture(autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign_programs.install(tmp_path_factory.mktemp("bin"), monkeypatch)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    (directory / "file").write_bytes(CONTENT)
    return directory


@pytest.fixture
def make(memory: Memory, events: Recorded) -> Iterator[Callable[[ShareConfig], Client]]:
    made: list[MmioTransport] = []

    def make(config: ShareConfig) -> Client:
        device = open_share("share0", config, MemoryMap(memory.guest), events, print)
        made.append(MmioTransport(device))
        return Client(made[-1], memory)

    yield make
    for transport in made:
        transport.close()


@pytest.fixture
def client(make: Callable[[ShareConfig], Client], directory: Path) -> Client:
    client = make(ShareConfig(directory))
    client.start()
    assert client.mount() == 0
    return client


def pid(client: Client) -> int:
    return client.device.backend._server.pid  # type: ignore[attr-defined, no-any-return]


def kill(client: Client, events: Recorded) -> None:
    """Kill the daemon, and let the loop notice."""
    before = events.names().count("fs-disconnected")
    os.kill(pid(client), signal.SIGKILL)

    def known() -> bool:
        client.device.attend()  # type: ignore[attr-defined]
        return events.names().count("fs-disconnected") > before

    wait(known)


def test_a_file_is_read(client: Client) -> None:
    assert client.read("file", len(CONTENT)) == CONTENT
    with pytest.raises(OSError, match="missing") as error:
        client.look_up("missing")
    assert error.value.errno == errno.ENOENT


def test_the_tag_is_the_configuration(
    make: Callable[[ShareConfig], Client], directory: Path
) -> None:
    client = make(ShareConfig(directory, tag="t" * 36))
    assert client.driver.load("DeviceID") == 26
    config = bytes(client.driver.transport.read(0x100 + at, 1) for at in range(40))
    assert config == b"t" * 36 + struct.pack("<I", 1)


def mkdir(client: Client, name: str) -> int:
    error, _ = client.call(MKDIR, struct.pack("<II", 0o755, 0) + name.encode() + b"\0")
    return error


def test_what_the_guest_makes_is_there(client: Client, directory: Path) -> None:
    assert mkdir(client, "made") == 0
    assert (directory / "made").is_dir()


def test_a_read_only_directory_is_so(
    make: Callable[[ShareConfig], Client], directory: Path
) -> None:
    client = make(ShareConfig(directory, read_only=True))
    client.start()
    assert client.mount() == 0
    assert mkdir(client, "made") == errno.EROFS
    assert client.read("file", 10) == CONTENT[:10]


def test_the_guest_sees_nothing_above(client: Client) -> None:
    for name in ("../shared", "/etc/passwd"):
        with pytest.raises(OSError, match="/"):
            client.look_up(name)


# --- a daemon that dies -------------------------------------------------------------------------


def test_requests_get_an_error_until_there_is_a_new_mount(client: Client, events: Recorded) -> None:
    node = client.look_up("file")
    handle = client.open(node)
    kill(client, events)
    for _ in range(3 * client.rings[1].size):
        assert client.answer(client.send_read(node, handle, 100)) == (NOT_CONNECTED, b"")
    forget = client.send(FORGET, struct.pack("<Q", 1), room=0, node=node, queue=HIPRIO)
    assert client.answer(forget) == (0, b"")
    assert client.mount() == 0
    assert client.read("file", len(CONTENT)) == CONTENT
    assert events.names().count("vhost-user-restarted") == 1
    assert "virtio-needs-reset" not in events.names()


def test_it_may_die_again_and_again(
    client: Client, events: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_device, "RESTARTS", 100)
    for _ in range(6):
        kill(client, events)
        assert client.call(GETATTR, bytes(16))[0] == NOT_CONNECTED
        assert client.mount() == 0
        assert client.read("file", 100) == CONTENT[:100]


def test_requests_that_it_had_are_answered(client: Client, events: Recorded) -> None:
    """The daemon is stopped first, so that it cannot have answered when it is killed."""
    node = client.look_up("file")
    handle = client.open(node)
    os.kill(pid(client), signal.SIGSTOP)
    sent = [client.send_read(node, handle, 100) for _ in range(PLACES)]
    kill(client, events)
    found: dict[int, int] = {}

    def answered() -> bool:
        client.device.attend()  # type: ignore[attr-defined]
        found.update(client.rings[1].used())
        return len(found) == PLACES

    wait(answered)
    assert set(found) == {head for _, head in sent}


def test_a_mount_is_refused_while_there_is_no_daemon(
    client: Client, events: Recorded, directory: Path
) -> None:
    kill(client, events)
    directory.rename(directory.with_suffix(".gone"))
    assert client.mount() == NOT_CONNECTED
    assert client.mount() == NOT_CONNECTED
    directory.with_suffix(".gone").rename(directory)
    assert client.mount() == 0
    assert client.read("file", 100) == CONTENT[:100]


def test_a_reset_is_a_new_beginning(client: Client, events: Recorded) -> None:
    kill(client, events)
    client.start()
    assert client.mount() == 0
    assert client.read("file", 100) == CONTENT[:100]
    first = pid(client)
    client.start()
    assert client.mount() == 0
    assert client.read("file", 100) == CONTENT[:100]
    assert pid(client) != first


# --- options and errors -------------------------------------------------------------------------


def test_what_is_no_directory_is_one_clear_error(
    make: Callable[[ShareConfig], Client], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"--share .*file: Not a directory"):
        make(ShareConfig(directory / "file"))
    with pytest.raises(UserError, match=r"--share .*none: No such file or directory"):
        make(ShareConfig(directory / "none"))
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(virtiofsd, "PLACES", ())
    with pytest.raises(HostError, match=r"--share .*needs virtiofsd, .*apt-get install virtiofsd"):
        make(ShareConfig(directory))


def test_a_virtiofsd_that_is_none_is_one_clear_error(
    make: Callable[[ShareConfig], Client],
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "virtiofsd").write_text('#!/bin/sh\necho "no such option: $1" >&2\nexit 2\n')
    (tmp_path / "virtiofsd").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(DaemonRefusedError, match=r"--share .*status 2.*no such option: --fd=3"):
        make(ShareConfig(directory))


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("d", ShareConfig(Path("d"))),
        ("/a:b:tag,ro", ShareConfig(Path("/a:b"), "tag", read_only=True)),
        ("/a:t,cache=never", ShareConfig(Path("/a"), "t", cache="never")),
    ],
)
def test_a_share_is_a_directory_with_options(text: str, config: ShareConfig) -> None:
    assert parse_share(text) == config


@pytest.mark.parametrize(
    "text", ["", ":t", "d:", "d:" + "ü" * (TAG_BYTES // 2 + 1), "d,rw", "d,cache=", "d,"]
)
def test_what_cannot_be_used_is_named(text: str) -> None:
    with pytest.raises(UserError, match="--share") as caught:
        parse_share(text)
    assert caught.value.hint


def test_each_share_has_a_tag_of_its_own() -> None:
    assert [share.tag for share in parse_shares(("a", "b:b"))] == ["share", "b"]
    with pytest.raises(UserError, match=r"--share a: another one has the tag 'share', too"):
        parse_shares(("a", "b"))


INITIAL = "1 1 0:2 / / rw - rootfs none rw\n22 1 0:21 / /proc rw - proc proc rw\n"
DISK = "28 1 254:0 / / rw,relatime - ext4 /dev/root rw,discard\n"


@pytest.mark.parametrize(
    ("mounts", "user", "limit", "sandbox"),
    [
        (DISK, 0, "1000", "namespace"),
        (DISK, 1000, "1000", "namespace"),
        (DISK, 1000, "0", "none"),
        (DISK, 0, "0", "namespace"),
        (INITIAL, 0, "1000", "chroot"),
        (INITIAL, 1000, "1000", "none"),
    ],
)
def test_the_sandbox_is_the_best_that_can_be_had(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    mounts: str,
    user: int,
    limit: str,
    sandbox: str,
) -> None:
    (tmp_path / "mountinfo").write_text(mounts)
    (tmp_path / "limit").write_text(f"{limit}\n")
    monkeypatch.setattr(virtiofsd, "MOUNTS", tmp_path / "mountinfo")
    limits = {tmp_path / "none": "0", tmp_path / "limit": "0"}
    monkeypatch.setattr(virtiofsd, "NO_USER_NAMESPACES", limits)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert virtiofsd.sandbox() == sandbox
    told = virtiofsd.notice(ShareConfig(tmp_path))
    assert (told or "").startswith(f"--share {tmp_path}: " * (sandbox == "none"))
    assert bool(told) == (sandbox == "none")


def test_a_daemon_without_a_sandbox_is_said(
    memory: Memory, events: Recorded, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    config = ShareConfig(directory)
    for sandbox, lines in (("namespace", 0), ("none", 1)):
        monkeypatch.setattr(virtiofsd, "sandbox", lambda sandbox=sandbox: sandbox)
        with open_share("share0", config, MemoryMap(memory.guest), events, said.append):
            assert len(said) == lines
