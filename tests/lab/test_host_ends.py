"""Host ends of a machine in the lab are the user's: ports, sockets, terminals, the way out.

Each machine runs in one lab host that is kept up, as the command line finds it.
"""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.lab import own_network
from tests.lab.program import PATIENCE, PYVMM, Program
from vmm.config.pmem import PmemConfig
from vmm.errors import UserError
from vmm.lab.guest import fixture
from vmm.virtio.pmem_file import PmemFile

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("kept"),
]

MODULES = ("virtio_mmio", "virtio_net", "virtio_console")
PMEM = ("virtio_mmio", "virtio_pmem", "nd_pmem")
FOUND = "until [ -b /dev/pmem0 ]; do :; done; "
UP = (
    "ip link set lo up; ip link set eth0 up; "
    "udhcpc -q -n -i eth0 -s /etc/udhcpc.script >/dev/null 2>&1; "
)
FETCH = (
    "router=$(ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'); "
    "wget -T 5 -q -O - http://$router:%d/ || echo fetched nothing; "
)
SERVE = (
    "mkdir /srv; echo a page of the guest >/srv/index.html; httpd -p 80 -h /srv; "
    "socat UDP-LISTEN:7,fork EXEC:cat & "
)
ECHO = "stty -F /dev/{0} raw -echo; cat </dev/{0} >/dev/{0} & "


def pyvmm(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [PYVMM, *words]
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=PATIENCE)


class Run(Program):
    """``pyvmm run --host lab`` with *options*. A context manager: ends it."""

    def __init__(
        self,
        script: str,
        *options: str,
        modules: Sequence[str] = MODULES,
        within: Callable[[list[str]], list[str]] = list,
    ) -> None:
        guest = fixture.guest(modules=modules, packages=["socat"], script=script)
        argv = [PYVMM, "run", "--host", "lab", *options]
        argv += ["--cmdline", "console=ttyAMA0 quiet panic=-1", "--initrd", str(guest.initrd)]
        super().__init__(within([*argv, str(guest.kernel)]))

    def __exit__(self, *_: object) -> None:
        if self.program.poll() is None:
            self.program.kill()
        self.program.communicate()

    def power_off(self) -> None:
        assert self.program.stdin
        self.program.stdin.write(b"poweroff\n")
        self.program.stdin.close()
        self.program.stdin = None
        self.expect_end(0)

    def expect_end(self, status: int) -> None:
        said, _ = self.program.communicate(timeout=PATIENCE)
        self.seen += said
        found = self.program.returncode
        # As a shell has it: a signal that came before pyvmm had handlers is the same status.
        assert (128 - found if found < 0 else found) == status, self.seen


@pytest.fixture
def _own_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let a run have a host of its own, which ends with it: nothing there is written later."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@contextmanager
def web_server(text: str) -> Iterator[int]:
    """Serve *text* on the loopback; yield the port."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def until(ask: Callable[[], bytes]) -> bytes:
    """Ask until there is an answer: what is asked may be about to start."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError):
            if answer := ask():
                return answer
        assert time.monotonic() < deadline
        time.sleep(0.5)


def page(port: int) -> bytes:
    argv = ["curl", "--silent", "--max-time", "10", f"http://127.0.0.1:{port}/"]
    return subprocess.run(argv, check=False, capture_output=True, timeout=60).stdout


def udp(port: int) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(b"datagram", ("127.0.0.1", port))
        return client.recv(100)


def type_in_screen(terminal: str, text: str, directory: Path) -> None:
    """Open *terminal* in screen(1), type *text*, and wait until its window shows the echo."""
    window, sockets = directory / "window", directory / "screen"
    sockets.mkdir(mode=0o700)
    environment = {**os.environ, "SCREENDIR": str(sockets), "TERM": "vt100"}

    def screen(*words: str) -> None:
        argv = ["screen", "-c", "/dev/null", "-S", "pyvmm", *words]
        subprocess.run(argv, check=True, env=environment, timeout=60)

    def shown() -> bytes:
        screen("-X", "hardcopy", str(window))
        return text.encode() if text in window.read_text() else b""

    screen("-d", "-m", terminal)
    try:
        screen("-X", "stuff", text)
        until(shown)
    finally:
        screen("-X", "quit")


def read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size and select.select([fd], [], [], PATIENCE)[0]:
        data += os.read(fd, size)
    return data


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("screen")), reason="curl or screen is not installed"
)
def test_ports_sockets_and_terminals_are_on_this_machine(tmp_path: Path) -> None:
    tcp, datagrams = free_port(), free_port()
    path = tmp_path / "console"
    with web_server("a page of this machine") as server:
        script = UP + ECHO.format("hvc0") + ECHO.format("hvc1") + SERVE + FETCH % server
        net = f"user,host=on,forward=tcp:{tcp}:80,forward=udp:{datagrams}:7"
        options = ["--net", net, "--console", f"unix={path}", "--console", "pty"]
        with Run(script, *options) as run:
            terminal = run.expect("console port 1 is (/dev/pts/[0-9]+)\n")[1].decode()
            run.expect("a page of this machine")
            assert until(lambda: page(tcp)) == b"a page of the guest\n"
            assert until(lambda: udp(datagrams)) == b"datagram"

            for each in (b"one client", b"and the next"):
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(path))
                    client.sendall(each)
                    assert read(client.fileno(), len(each)) == each

            for each in (b"typed", b"typed again"):
                with closing(open(terminal, "r+b", buffering=0)) as user:  # noqa: PTH123
                    user.write(each)
                    assert read(user.fileno(), len(each)) == each
            type_in_screen(terminal, "typed in screen", tmp_path)
            run.power_off()
    assert not path.exists()
    with pytest.raises(OSError, match="No such file"):
        os.stat(terminal)  # noqa: PTH116


@pytest.mark.usefixtures("_own_host")
def test_names_are_resolved_and_the_loopback_is_reached_with_host_on_only() -> None:
    """In a network without a way out: a request to the router is not to reach the real one.

    The name server is on the loopback; its only name has the router's address.
    """
    script = "".join(
        f"ip link set {interface} up; udhcpc -q -n -i {interface} -s /etc/udhcpc.script; "
        f"nslookup -type=a {own_network.NAME}; "
        f"wget -T 20 -q -O - http://{own_network.NAME}:{own_network.PORT}/ || echo got nothing; "
        f"ip link set {interface} down; echo done with {interface}; "
        for interface in ("eth0", "eth1")
    )
    options = ("--net", "user", "--net", "user,host=on")
    resolved = rf"Name:\s+{own_network.NAME}\s+Address:\s+{own_network.ROUTER}\s"
    with Run(script, *options, within=own_network.inside) as run:
        run.expect(f"(?s){resolved}.*got nothing.*done with eth0")
        assert own_network.PAGE.encode() not in run.seen
        run.expect(f"(?s)done with eth0.*{resolved}.*{own_network.PAGE}.*done with eth1")
        run.power_off()


def test_a_socket_of_the_users_goes_when_the_run_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "console"
    with Run("echo it is over", "--console", f"unix={path}") as run:
        run.expect("it is over")
        assert path.is_socket()
        run.program.send_signal(signal.SIGTERM)
        run.expect_end(128 + signal.SIGTERM)
    assert not path.exists()


def test_a_taken_port_is_an_error_before_the_guest_boots() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        with Run("", "--net", f"user,forward=tcp:{port}:80") as run:
            run.expect_end(3)
            (line,) = run.seen.decode().splitlines()
    assert f"--net user,forward=tcp:{port}:80" in line
    assert "Address already in use" in line


def test_a_taken_path_is_an_error_before_the_guest_boots(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Run("", "--console", f"unix={tmp_path / 'file'}") as run:
        run.expect_end(2)


@pytest.mark.usefixtures("_own_host")
def test_what_a_guest_stores_is_in_the_users_file_at_the_end(tmp_path: Path) -> None:
    """The guest flushes nothing."""
    path, size = tmp_path / "memory", 8 << 20
    script = FOUND + f"yes stored | head -c {size} >/dev/pmem0; echo it is written"
    with Run(script, "--pmem", f"{path},size=16M", modules=PMEM) as run:
        run.expect("it is written")
        with pytest.raises(UserError, match=f"--pmem {path}: another machine uses it"):
            PmemFile(PmemConfig(path))
        run.power_off()
    content = path.read_bytes()
    assert content[:size] == (b"stored\n" * (size // 7 + 1))[:size]
    assert content[size:] == bytes(8 << 20)
    with Run(FOUND + "md5sum /dev/pmem0", "--pmem", f"{path},ro", modules=PMEM) as run:
        seen = run.expect("([0-9a-f]{32})  /dev/pmem0")[1].decode()
        run.power_off()
    assert seen == hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.mark.usefixtures("_own_host")
def test_what_a_guest_has_flushed_outlives_a_killed_run(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    script = FOUND + (
        "yes stored | head -c 4194304 | dd of=/dev/pmem0 conv=fsync bs=1M iflag=fullblock "
        "2>/dev/null; echo it is flushed"
    )
    with Run(script, "--pmem", f"{path},size=8M", modules=PMEM) as run:
        run.expect("it is flushed")
        run.program.kill()
        run.expect_end(128 + signal.SIGKILL)
    assert path.read_bytes() == (b"stored\n" * (1 << 20))[: 4 << 20] + bytes(4 << 20)
    PmemFile(PmemConfig(path)).close()


def test_what_is_in_the_lab_host_is_said() -> None:
    with Run("", "--net", "tap", "--vsock", "77") as run:
        line = run.expect("pyvmm: (.*)\n")[1].decode()
        run.program.terminate()
        run.expect_end(128 + signal.SIGTERM)
    assert line.startswith("--net tap and --vsock 77: the host's side is in the lab host (fwb)")
    assert "`pyvmm lab exec fwb -- COMMAND` reaches it" in line
