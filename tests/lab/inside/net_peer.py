"""The other end of a guest's network, in a lab host: sends bytes, takes them back, and measures.

    python3 net_peer.py MEGABYTES PORT [--vsock] [--echo [CID:]PORT]... -- COMMAND...

It listens on PORT while COMMAND, a machine, runs: who connects first gets MEGABYTES of random
bytes, who comes next sends some, and so on by turns; a turn that fails is had again. With --echo it
connects to PORT, here or in the guest CID, until somebody takes it, and has some bytes echoed. In
the end it prints a JSON line, and has COMMAND's exit status.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from threading import Thread
from typing import Any

PART = 1 << 20
TRIES = 600
PATIENCE = 120.0
"""Seconds without progress after which a transfer fails."""
GREETING = b"is there anybody there?"


def serve(listener: socket.socket, data: bytes, results: list[dict[str, Any]]) -> None:
    sending = True
    while True:
        connection, _ = listener.accept()
        connection.settimeout(PATIENCE)
        began = time.monotonic()
        error = ""
        digest, size = hashlib.md5(), 0  # noqa: S324
        with connection:
            try:
                if sending:
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    digest.update(data)
                    size = len(data)
                    with suppress(ConnectionResetError):  # an end as good as any: all was sent
                        connection.recv(1)  # until it is over there
                else:
                    while part := connection.recv(PART):
                        digest.update(part)
                        size += len(part)
            except OSError as failed:  # the next one is to be served all the same
                error = str(failed)
        seconds = time.monotonic() - began
        results.append(
            {
                "sent": sending,
                "bytes": size,
                "md5": digest.hexdigest(),
                "MB/s": round(size / seconds / 1e6, 1),
                "error": error,
            }
        )
        sending = sending if error else not sending


def echo(where: str, echoes: list[str]) -> None:
    cid, colon, port = where.rpartition(":")
    family, address = (
        (socket.AF_VSOCK, (int(cid), int(port)))
        if colon
        else (socket.AF_INET, ("127.0.0.1", int(port)))
    )
    for _ in range(TRIES):
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            try:
                connection.connect(address)
                connection.sendall(GREETING)
                if connection.recv(100) == GREETING:
                    echoes.append(where)
                    return
            except OSError:
                pass
        time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("megabytes", type=int)
    parser.add_argument("port", type=int)
    parser.add_argument("--vsock", action="store_true")
    parser.add_argument("--echo", action="append", default=[])
    at = sys.argv.index("--")
    options, command = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    if options.vsock:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((socket.VMADDR_CID_ANY, options.port))
    else:
        listener = socket.create_server(("", options.port))
    listener.listen()
    transfers: list[dict[str, Any]] = []
    echoes: list[str] = []
    data = os.urandom(options.megabytes << 20)
    Thread(target=serve, args=(listener, data, transfers), daemon=True).start()
    for where in options.echo:
        Thread(target=echo, args=(where, echoes), daemon=True).start()
    done = subprocess.run(command, check=False)
    print(json.dumps({"transfers": transfers, "echoes": sorted(echoes)}))  # noqa: T201
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
