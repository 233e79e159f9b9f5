"""The part of QEMU's machine protocol that the lab needs: one question at a time."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING, Any

from vmm.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path


def execute(path: Path, command: str, **arguments: object) -> Any:
    """Run *command* on the QEMU that listens at *path*; return its answer. Raises HostError."""
    try:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(10)
            monitor.connect(str(path))
            answers = monitor.makefile("r")
            answers.readline()  # the greeting
            answer: dict[str, Any] = {}
            for name, values in (("qmp_capabilities", {}), (command, arguments)):
                monitor.sendall(json.dumps({"execute": name, "arguments": values}).encode())
                answer = {}
                while not answer.keys() & {"return", "error"}:  # events come in between
                    answer = json.loads(answers.readline())
    except (OSError, ValueError) as error:
        raise HostError(f"QEMU does not answer at {path}: {error}") from error
    if "error" in answer:
        raise HostError(f"QEMU refuses {command}: {answer['error'].get('desc')}")
    return answer["return"]


def forwarded_port(path: Path) -> int:
    """Return the TCP port of 127.0.0.1 that QEMU's user network forwards to the agent."""
    text = execute(path, "human-monitor-command", **{"command-line": "info usernet"})
    return parse_usernet(text)


def parse_usernet(text: str) -> int:
    """Return the forwarded port in the output of QEMU's ``info usernet``. Raises HostError."""
    match = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", text)
    if match is None:
        raise HostError("QEMU's user network forwards no port")
    return int(match[1])
