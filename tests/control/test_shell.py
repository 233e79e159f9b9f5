"""The Python prompt in a machine's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from vmm.control.shell import shell

PATIENCE = 20.0


class Client:
    """The client of a prompt."""

    def __init__(self) -> None:
        self.seen = b""
        self.ended = threading.Event()
        self.on_data: Callable[[bytes], object] = lambda _: None
        self.on_gone: Callable[[], object] = lambda: None

    def post(self, data: bytes) -> None:
        self.seen += data

    def end(self) -> None:
        self.ended.set()

    def ask(self, line: str, answer: str) -> None:
        self.on_data(line.encode() + b"\n")
        deadline = time.monotonic() + PATIENCE
        while answer.encode() not in self.seen:
            assert time.monotonic() < deadline, self.seen
            time.sleep(0.01)


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    shell({"machine": 41}).begin(made)
    yield made
    made.on_gone()
    assert made.ended.wait(PATIENCE)


def test_what_is_typed_is_run_with_the_machine(client: Client) -> None:
    client.ask("machine + 1", "42\n")
    client.ask("for n in range(2):", "... ")
    client.ask("    print('line', n)\n", "line 1\n")


def test_an_error_is_shown_and_the_prompt_goes_on(client: Client) -> None:
    client.ask("1 // 0", "ZeroDivisionError")
    client.ask("1 +", "SyntaxError")
    client.ask("undefined", "NameError")
    client.ask("machine", "41\n")


def test_no_file_is_opened(client: Client) -> None:
    client.ask("open('/etc/passwd')", "PermissionError")
    client.ask("import antigravity", "only what the machine's process has imported")
    client.ask("from os import nothing", "only what the machine's process has imported")
    client.ask("import os.path; os.getpid() > 0", "True\n")


@pytest.mark.parametrize("last", [b"exit()\n", b"\x04"])
def test_the_user_leaves(client: Client, last: bytes) -> None:
    client.ask("machine", "41\n")
    client.on_data(last)
    assert client.ended.wait(PATIENCE)


def test_there_is_one_prompt_at_a_time(client: Client) -> None:
    client.ask("machine", "41\n")
    second = Client()
    shell({}).begin(second)
    assert second.ended.wait(PATIENCE)
    assert second.seen == b"somebody else has the prompt\n"
