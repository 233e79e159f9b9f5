"""Run a command in a network of its own: whatever it sends there, no other machine gets it.

    python own_network.py COMMAND...

It has a loopback, and an interface whose router never answers. Names are asked of a server on the
loopback, as where systemd-resolved runs: it knows `NAME`, which has the router's address. A web
server on the loopback is on `PORT`. Both servers end with COMMAND.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Thread
from typing import Final

ROUTER: Final = "192.0.2.1"
NAME: Final = "laptop.test"
PORT: Final = 8080
PAGE: Final = "a page of the laptop's own loopback"

_SETUP: Final = f"""
ip link set lo up
ip link add up0 type veth peer name nowhere
ip address add 192.0.2.2/24 dev up0
ip link set up0 up
ip link set nowhere up
ip route add default via {ROUTER}
mount --bind "$1" /etc/resolv.conf
"""
_TYPE_A: Final = 1
_NO_SUCH_NAME: Final = 3


def inside(command: list[str]) -> list[str]:
    """Return *command* as it runs in a network of its own; the user stays who it is."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    argv = ["unshare", *user, "--net", "--mount", sys.executable, __file__]
    if user:  # passt, and others, are not to think that they are root
        argv += ["unshare", "--user", f"--map-user={os.getuid()}", f"--map-group={os.getgid()}"]
    return [*argv, *command]


def answer(query: bytes) -> bytes:
    """Return the answer to a DNS *query* of one question (RFC 1035, 4.1)."""
    end = query.index(b"\0", 12) + 5
    question = query[12:end]
    labels = b"".join(bytes([len(part)]) + part.encode() for part in NAME.split("."))
    known = question[:-4].lower() == labels + b"\0"
    asked = known and question[-4:-2] == struct.pack(">H", _TYPE_A)
    flags = 0x8180 | (0 if known else _NO_SUCH_NAME)
    head = query[:2] + struct.pack(">HHHHH", flags, 1, int(asked), 0, 0)
    record = struct.pack(">HHHIH", 0xC00C, _TYPE_A, 1, 60, 4) + socket.inet_aton(ROUTER)
    return head + question + (record if asked else b"")


def _serve(names: socket.socket, web: socket.socket, until: int) -> None:
    """Serve until the other end of the pipe *until* is closed."""

    def resolve() -> None:
        while True:
            query, client = names.recvfrom(512)
            names.sendto(answer(query), client)

    def show() -> None:
        while True:
            with web.accept()[0] as client:
                client.recv(4096)
                client.sendall(f"HTTP/1.0 200 OK\r\n\r\n{PAGE}".encode())

    for work in (resolve, show):
        Thread(target=work, daemon=True).start()
    os.read(until, 1)


def main() -> None:
    """Make the network and its servers, and become COMMAND."""
    with NamedTemporaryFile("w", delete=False) as file:
        file.write("nameserver 127.0.0.1\n")
    Path(file.name).chmod(0o644)
    subprocess.run(["sh", "-ec", _SETUP, "sh", file.name], check=True)
    Path(file.name).unlink()
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("127.0.0.1", 53))
    web = socket.create_server(("127.0.0.1", PORT))
    until, held = os.pipe()
    if os.fork() == 0:
        os.close(held)
        _serve(names, web, until)
        os._exit(0)
    os.set_inheritable(held, True)  # noqa: FBT003
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606


if __name__ == "__main__":
    main()
