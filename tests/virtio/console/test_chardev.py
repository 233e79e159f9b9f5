"""The host's ends of console ports: files, sockets, pseudo-terminals, pipes."""

from __future__ import annotations

import errno
import os
import socket
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vmm import broker
from vmm.config import MachineConfig
from vmm.config.console import ConsoleConfig, check_consoles, parse_console
from vmm.errors import HostError, UserError
from vmm.loop import Loop
from vmm.virtio.console.chardev import pty
from vmm.virtio.console.chardev import unix as chardev_unix
from vmm.virtio.console.chardev.chardev import URGENT, Chardev
from vmm.virtio.console.chardev.file import FileChardev
from vmm.virtio.console.chardev.pipes import PipeChardev
from vmm.virtio.console.chardev.pty import PtyChardev
from vmm.virtio.console.chardev.unix import UnixChardev
from vmm.virtio.console.open import open_ends

PATIENCE = 10.0


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Loop() as loop:
        yield loop


def turn(loop: Loop, until: Callable[[], object]) -> None:
    """Run *loop* until *until* is true."""
    deadline = time.monotonic() + PATIENCE
    timer = loop.call_later(PATIENCE, lambda: None)
    loop.run(until=lambda: bool(until()) or time.monotonic() > deadline)
    timer.cancel()
    assert until()


def files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_guest_that_writes_without_end_piles_nothing_up(loop: Loop) -> None:
    """Emergency writes come from vCPU threads, which must not wait for the loop."""
    with PipeChardev(loop) as end:
        for number in range(10_000):
            end.write(bytes([number % 256]))
        assert len(loop._calls) <= URGENT
        turn(loop, lambda: not loop._calls)
        assert end.drain(1 << 16) == bytes(number % 256 for number in range(URGENT))
        end.write(b"!")
        turn(loop, lambda: not loop._calls)
        assert end.drain(10) == b"!"


# --- the option ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("stdio", ConsoleConfig("stdio")),
        ("pty", ConsoleConfig("pty")),
        ("pty,name=org.qemu.guest_agent.0", ConsoleConfig("pty", None, "org.qemu.guest_agent.0")),
        ("file=/a=b", ConsoleConfig("file", Path("/a=b"))),
        ("unix=x.sock,name=n", ConsoleConfig("unix", Path("x.sock"), "n")),
    ],
)
def test_an_option_says_what_a_port_is_joined_to(text: str, config: ConsoleConfig) -> None:
    assert parse_console(text) == config


@pytest.mark.parametrize(
    "text",
    [
        *("", "file", "file=", "pty=x", "tcp=1", "stdio,", "pty,name=", "pty,name=a/b", "pty,x=1"),
        *("pty,name=a b", "pty,name=" + "x" * 65),
    ],
)
def test_what_says_nothing_is_refused_by_the_option_s_name(text: str) -> None:
    with pytest.raises(UserError, match=r"^--console"):
        parse_console(text)


@pytest.mark.parametrize(
    "texts", [("stdio", "stdio,name=x"), ("pty,name=x", "pty,name=x"), ("file=x", "file=x,name=y")]
)
def test_what_cannot_be_together_is_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="--console"):
        check_consoles(tuple(map(parse_console, texts)))
    check_consoles((parse_console("pty"), parse_console("pty")))


def test_the_user_s_terminal_is_the_guest_s_console() -> None:
    """Not with another command line, nor if the terminal is a named port."""
    image = Path("Image")
    serial = MachineConfig(image=image).default_cmdline
    assert "console=ttyAMA0" in serial
    virtio = MachineConfig(image=image, consoles=(parse_console("stdio"),)).default_cmdline
    assert virtio == f"{serial} console=hvc0", "the last is /dev/console"
    for other in ("stdio,name=x", "pty"):
        config = MachineConfig(image=image, consoles=(parse_console(other),))
        assert config.default_cmdline == serial


def test_ends_are_opened_together_or_not_at_all(loop: Loop, tmp_path: Path) -> None:
    broker.current()  # it stays, whoever needs it first
    before = files()
    good = [ConsoleConfig("pty"), ConsoleConfig("stdio"), ConsoleConfig("file", tmp_path / "out")]
    ends = open_ends(loop, good)
    kinds = [type(end) for end, _ in ends]
    assert kinds == [PtyChardev, PipeChardev, FileChardev]
    for end, _ in ends:
        end.close()
    with pytest.raises(UserError, match="--console unix"):
        open_ends(loop, [*good, ConsoleConfig("unix", tmp_path)])
    assert files() == before


# --- files --------------------------------------------------------------------------------------


def test_a_file_is_emptied_and_written(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    with FileChardev(loop, path, "--console file") as end:
        assert end.connected
        assert end.input_fd == -1
        os.write(end.output_fd, b"now")
    assert path.read_text() == "now"


def test_a_fifo_needs_no_reader_yet(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with FileChardev(loop, path, "--console file") as end:
        os.write(end.output_fd, b"kept")
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        assert os.read(reader, 10) == b"kept"
        os.close(reader)


def test_a_file_that_cannot_be_written_is_refused(loop: Loop, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--console file: .*: Is a directory; name a file"):
        FileChardev(loop, tmp_path, "--console file")


# --- sockets ------------------------------------------------------------------------------------


@pytest.fixture
def unix(loop: Loop, tmp_path: Path) -> Iterator[UnixChardev]:
    with UnixChardev(loop, tmp_path / "s", "--console unix") as end:
        end.start()
        yield end


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client


def test_clients_come_one_after_another(loop: Loop, unix: UnixChardev, tmp_path: Path) -> None:
    changes: list[bool] = []
    unix.on_change = lambda _error: changes.append(unix.connected)
    unix.on_input = lambda: None if os.read(unix.input_fd, 10) else unix.input_ended()
    first, second = connect(tmp_path / "s"), connect(tmp_path / "s")
    turn(loop, lambda: changes == [True])
    os.write(unix.output_fd, b"one")
    assert first.recv(10) == b"one"
    unix.want_input()
    first.close()
    turn(loop, lambda: changes == [True, False, True])
    os.write(unix.output_fd, b"two")
    assert second.recv(10) == b"two"
    second.close()


def test_a_client_that_went_unnoticed_makes_room(
    loop: Loop, unix: UnixChardev, tmp_path: Path
) -> None:
    """The guest neither reads nor writes."""
    first = connect(tmp_path / "s")
    turn(loop, lambda: unix.connected)
    second = connect(tmp_path / "s")
    loop.call_later(0.1, first.close)
    turn(loop, lambda: first.fileno() < 0)
    second.send(b"hello")
    seen: list[bytes] = []

    def ask() -> bool:
        if unix.connected and not seen:
            with suppress(BlockingIOError):
                seen.extend(filter(None, [os.read(unix.input_fd, 10)]))
        return seen == [b"hello"]

    turn(loop, ask)
    second.close()


def test_who_sends_no_more_may_still_read(loop: Loop, unix: UnixChardev, tmp_path: Path) -> None:
    """As ``echo question | socat - UNIX-CONNECT:...`` does."""
    client = connect(tmp_path / "s")
    turn(loop, lambda: unix.connected)
    client.shutdown(socket.SHUT_WR)
    assert os.read(unix.input_fd, 10) == b""
    unix.input_ended()
    unix.want_room()
    assert unix.connected
    os.write(unix.output_fd, b"answer")
    assert client.recv(10) == b"answer"
    client.close()
    turn(loop, lambda: not unix.connected)
    assert not unix.input_over


def test_room_is_told_of_once_a_full_socket_has_some(
    loop: Loop, unix: UnixChardev, tmp_path: Path
) -> None:
    client = connect(tmp_path / "s")
    turn(loop, lambda: unix.connected)
    with suppress(BlockingIOError):
        while os.write(unix.output_fd, bytes(4096)):
            pass
    told: list[int] = []
    unix.on_room = lambda: told.append(1)
    unix.want_room()
    loop.call_soon_threadsafe(lambda: client.recv(1 << 20))
    turn(loop, lambda: told)
    client.close()
    unix.want_room()
    assert not unix.connected, "nobody will ever read"


def test_a_dead_machine_s_socket_is_replaced(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with UnixChardev(loop, path, "--console unix"):
        with pytest.raises(UserError, match="in use"):
            UnixChardev(loop, path, "--console unix")
        assert path.is_socket()
    assert not path.exists()


def test_a_file_is_not_replaced_by_a_socket(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    before = files()
    with pytest.raises(UserError, match=r"--console unix: .*s: it is in use, or is no socket"):
        UnixChardev(loop, path, "--console unix")
    with pytest.raises(UserError, match=r"--console unix: .*path too long"):
        UnixChardev(loop, tmp_path / ("x" * 200), "--console unix")
    assert path.read_text() == "precious"
    assert files() == before


# --- pseudo-terminals ---------------------------------------------------------------------------


def test_a_pseudo_terminal_is_opened_and_closed_by_others(loop: Loop) -> None:
    before = files()
    with PtyChardev(loop, "--console pty") as end:
        changes: list[bool] = []
        end.on_change = lambda _error: changes.append(end.connected)
        end.start()
        for _ in range(2):
            changes.clear()
            user = os.open(end.path, os.O_RDWR | os.O_NOCTTY)
            turn(loop, lambda: changes == [True])
            os.write(end.output_fd, b"guest\n")
            assert os.read(user, 10) == b"guest\n"
            os.write(user, b"user")
            assert os.read(end.input_fd, 10) == b"user"
            os.close(user)
            with pytest.raises(OSError, match="Input/output error"):
                os.read(end.input_fd, 10)
            end.hang_up()
            turn(loop, lambda: changes == [True, False])
    assert files() == before


def refuse(*_: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_pseudo_terminal_waits_for_descriptors(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others opened that end: the machine must not end because of it."""
    monkeypatch.setattr(pty, "LOOK_AGAIN", 0.01)
    with PtyChardev(loop, "--console pty") as end:
        user = os.open(end.path, os.O_RDWR | os.O_NOCTTY)
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", refuse)
            end.start()
            assert not end.connected
        turn(loop, lambda: end.connected)
        os.close(user)


def test_a_socket_waits_for_descriptors(
    loop: Loop, unix: UnixChardev, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it does not try again without pause."""
    asked: list[int] = []

    def accept() -> None:
        asked.append(1)
        refuse()

    monkeypatch.setattr(chardev_unix, "LOOK_AGAIN", 0.1)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        listener = unix._listener.socket
        with monkeypatch.context() as patch:
            patch.setattr(unix._listener, "socket", Knocked(listener, accept))
            began = time.monotonic()
            turn(loop, lambda: time.monotonic() > began + 0.25)
        assert 1 <= len(asked) <= 4
        turn(loop, lambda: unix.connected)


class Knocked:
    """A listening socket that cannot accept clients."""

    def __init__(self, real: socket.socket, accept: Callable[[], None]) -> None:
        self.fileno, self.accept = real.fileno, accept


@pytest.mark.parametrize("call", ["openpty", "ttyname", "pipe2"])
def test_descriptors_that_run_out_are_one_clear_error(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    kind = "stdio" if call == "pipe2" else "pty"
    before = files()
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(HostError, match=rf"--console {kind}: .*Too many open files"):
        open_ends(loop, [ConsoleConfig(kind)])
    assert files() == before


def test_what_a_guest_writes_is_not_echoed_to_it(loop: Loop) -> None:
    with PtyChardev(loop, "--console pty") as end:
        end.start()
        user = os.open(end.path, os.O_RDWR | os.O_NOCTTY)
        turn(loop, lambda: end.connected)
        assert not termios.tcgetattr(user)[3] & termios.ECHO
        os.write(end.output_fd, b"x")
        with pytest.raises(BlockingIOError):
            os.read(end.input_fd, 1)
        os.close(user)


# --- pipes --------------------------------------------------------------------------------------


def test_pipes_pass_bytes_and_say_when_there_is_room(loop: Loop) -> None:
    before = files()
    with PipeChardev(loop) as end:
        assert end.drain(10) == b""
        os.write(end.output_fd, b"guest")
        assert end.drain(10) == b"guest"
        data = os.urandom(1 << 18)
        taken = end.receive(data)
        assert 0 < taken < len(data)
        assert end.receive(data[:1]) in {0, 1}
        told: list[int] = []
        end.on_space = lambda: told.append(1)
        assert os.read(end.input_fd, taken) == data[:taken]
        turn(loop, lambda: told)
        assert end.receive_break()
        assert os.read(end.input_fd, 10).endswith(b"\x0f")
    assert files() == before


def test_resizing_is_told(loop: Loop) -> None:
    with PipeChardev(loop) as end:
        told: list[object] = []
        end.on_resize = lambda: told.append(end.size)
        end.resize(80, 24)
        assert told == [(80, 24)]


def test_closing_twice_is_closing_once(loop: Loop, tmp_path: Path) -> None:
    ends: list[Chardev] = [
        PipeChardev(loop),
        PtyChardev(loop, "--console pty"),
        UnixChardev(loop, tmp_path / "s", "--console unix"),
        FileChardev(loop, tmp_path / "f", "--console file"),
    ]
    for end in ends * 2:
        end.close()
        assert not end.connected


def test_a_socket_of_which_the_broker_cannot_be_told_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise HostError("the broker does not answer")

    monkeypatch.setattr(broker.current(), "owe", refuse)
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(HostError, match="does not answer") as caught:
        chardev_unix.Listener(tmp_path / "s", "--console unix")
    assert len([*Path("/proc/self/fd").iterdir()]) == before, caught.tb
    assert not [*tmp_path.iterdir()]
