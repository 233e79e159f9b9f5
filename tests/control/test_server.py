"""Clients of the control server: many, slow ones, hostile ones; the machine's loop goes on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.control.rig import PATIENCE, Rig, answer, ask, request, serving
from vmm.control import connection, server
from vmm.control.outbox import Outbox

NOBODY = 65534


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with serving(tmp_path / "socket") as made:
        yield made


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_request_is_answered_and_the_next_one_on_the_same_connection(rig: Rig) -> None:
    with rig.client() as client:
        assert ask(client, "POST", "/add") == (200, b'{"asked":1,"text":"hello"}\n')
        assert ask(client, "POST", "/add", b'{"text": "bye"}') == (
            200,
            b'{"asked":2,"text":"bye"}\n',
        )


def test_requests_sent_at_once_are_answered_in_their_order(rig: Rig) -> None:
    with rig.client() as client:
        client.sendall(request("POST", "/add") * 20)
        assert [json.loads(answer(client)[1])["asked"] for _ in range(20)] == [*range(1, 21)]


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        (("GET", "/"), 404, "/openapi.json"),
        (("GET", "/add"), 405, "use POST"),
        (("HEAD", "/add"), 405, ""),
        (("GET", "/echo"), 426, "Upgrade: echo"),
        (("POST", "/add", b"{"), 400, "not JSON"),
        (("POST", "/add", b"[" * 60000), 400, "not JSON"),
        (("POST", "/add", b"[]"), 400, "no JSON object"),
        (("POST", "/add", b'{"word": 1}'), 400, "word: no parameter"),
        (("POST", "/add", b'{"text": 1}'), 400, "not a text"),
        (("POST", "/add", b'{"text": "other"}'), 400, "hello, bye"),
        (("POST", "/file"), 400, "takes 1 descriptors, and 0 came"),
        (("POST", "/no"), 409, "it is not the time"),
        (("POST", "/host"), 500, "the host cannot"),
        (("POST", "/bug"), 500, "a bug in pyvmm"),
    ],
)
def test_what_cannot_be_done_is_an_error_in_words_and_the_connection_stays(
    rig: Rig, asked: tuple[str, ...], status: int, said: str
) -> None:
    with rig.client() as client:
        client.sendall(request(*asked))  # type: ignore[arg-type]
        if asked[0] == "HEAD":
            assert client.recv(4096).startswith(b"HTTP/1.1 405")
        else:
            found, body = answer(client)
            assert found == status
            assert said in body.decode()
            assert json.loads(body)["error"]
        assert ask(client, "POST", "/add")[0] == 200


def test_a_bug_is_an_event(rig: Rig) -> None:
    with rig.client() as client:
        ask(client, "POST", "/bug")
    assert rig.recorded["control-failed"] == [{"request": "/bug", "error": "ZeroDivisionError()"}]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 4000, 431),
        (request("POST", "/add", headers=["Content-Length: 999999999"]), 0),
        (request("POST", "/add", b"x" * (connection.LONGEST_BODY + 1)), 413),
        (request("POST", "/add", headers=["Transfer-Encoding: chunked"]) + b"zz\r\n", 400),
    ],
)
def test_rubbish_is_refused_and_its_sender_disconnected(rig: Rig, sent: bytes, status: int) -> None:
    with rig.client() as client:
        with suppress(BrokenPipeError):
            client.sendall(sent)
        if status:
            assert answer(client)[0] == status
            assert client.recv(1) == b""
    with rig.client() as another:
        assert ask(another, "POST", "/add")[0] == 200


def test_a_hundred_clients_one_of_them_hanging_one_sending_rubbish(rig: Rig) -> None:
    with ExitStack() as owned:
        hanging = owned.enter_context(rig.client())
        hanging.sendall(b"POST /add HTTP/1.1\r\nHost:")
        rubbish = owned.enter_context(rig.client())
        rubbish.sendall(b"\0" * 1000)
        clients = [owned.enter_context(rig.client()) for _ in range(98)]
        for each in clients:
            each.sendall(request("POST", "/add"))
        assert {answer(each)[0] for each in clients} == {200}
        assert rig.asked == 98
        hanging.sendall(b" x\r\n\r\n")
        assert answer(hanging)[0] == 200


def test_one_client_too_many_is_told_so_and_a_slot_is_free_again(rig: Rig) -> None:
    with ExitStack() as owned:
        clients = [owned.enter_context(rig.client()) for _ in range(server.MOST_CLIENTS)]
        for each in clients:
            assert ask(each, "POST", "/add")[0] == 200
        with rig.client() as late:
            assert ask(late, "POST", "/add")[0] == 503
        clients[0].close()
        wait(lambda: len(rig.server._connections) < server.MOST_CLIENTS)
        with rig.client() as later:
            assert ask(later, "POST", "/add")[0] == 200


def test_a_client_that_sends_no_whole_request_is_disconnected(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "IDLE", 0.1)
    with rig.client() as client:
        client.sendall(b"POST /add HTTP/1.1\r\n")
        assert client.recv(1) == b""


def test_a_client_waits_as_long_as_the_machine_does(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "IDLE", 0.1)
    rig.gate.clear()
    with rig.client() as client:
        client.sendall(request("POST", "/add"))
        time.sleep(0.3)
        rig.gate.set()
        assert answer(client)[0] == 200


CONNECT = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(b"POST /add HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
print(client.recv(4096))
"""


def test_another_user_is_refused() -> None:
    if os.getuid():
        pytest.skip("takes root, who can be another user")
    with TemporaryDirectory() as name, serving(Path(name) / "socket") as rig:
        Path(name).chmod(0o755)
        rig.path.chmod(0o666)
        command = [sys.executable, "-c", CONNECT, str(rig.path)]
        done = subprocess.run(command, user=NOBODY, check=False, capture_output=True)
        assert b"403" in done.stdout, done.stderr
        assert rig.recorded["control-refused"] == [{"uid": NOBODY}]
        assert rig.asked == 0


def test_descriptors_come_with_a_request_and_do_not_stay(rig: Rig, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(123))
    with rig.client() as client, file.open() as opened:
        ask(client, "POST", "/add")  # it is accepted
        before = descriptors()
        for _ in range(10):
            socket.send_fds(client, [request("POST", "/file")], [opened.fileno()])
            assert json.loads(answer(client)[1])["asked"] == 123
            socket.send_fds(client, [request("POST", "/add")], [opened.fileno()])
            assert answer(client)[0] == 400
        wait(lambda: descriptors() == before)


def test_too_many_descriptors_are_refused_and_closed(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as opened:
        before = descriptors()
        with rig.client() as client:
            for _ in range(3):
                with suppress(BrokenPipeError):
                    socket.send_fds(client, [b"POST"], [opened.fileno()] * 4)
                    time.sleep(0.02)
            assert answer(client)[0] == 400
        wait(lambda: descriptors() == before)


def test_events_are_streamed_from_now_on_to_each_client(rig: Rig) -> None:
    rig.events.emit("before")
    with rig.client() as one, rig.client() as other:
        for each in (one, other):
            each.sendall(request("GET", "/events"))
            assert each.recv(4096).startswith(b"HTTP/1.1 200")
        wait(lambda: len(rig.events.hub._channels) == 2)
        rig.events.emit("after", number=1)
        for each in (one, other):
            data = each.recv(4096)
            assert b'{"number": 1, "event": "after", "timestamp": "' in data
            assert b"before" not in data
    wait(lambda: not rig.events.hub.heard)


def test_a_reader_that_is_too_slow_loses_events_and_is_told_so(rig: Rig) -> None:
    with rig.client() as client:
        client.sendall(request("GET", "/events"))
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        wait(lambda: rig.events.hub.heard)
        for number in range(5000):
            rig.events.emit("much", number=number, text="x" * 1000)
        data = b""
        while b"events-lost" not in data:
            got = client.recv(1 << 20)
            assert got
            data += got
        assert len(data) < 4 << 20
        wait(lambda: not next(iter(rig.events.hub._channels))._outbox._bytes)  # type: ignore[attr-defined]
        rig.events.emit("last")
        assert b'"last"' in client.recv(4096)


def test_a_connection_becomes_another_protocol_both_ways(rig: Rig) -> None:
    with rig.client() as client:
        head = request("GET", "/echo", headers=["Upgrade: echo", "Connection: upgrade"])
        client.sendall(head + b"early")
        data = b""
        while b"early" not in data:
            data += client.recv(4096)
        assert data.startswith(b"HTTP/1.1 101")
        client.sendall(b"later")
        assert client.recv(4096) == b"later"


def test_at_the_end_who_waits_is_told_and_feeds_end(rig: Rig) -> None:
    with rig.client() as waiting, rig.client() as reader, rig.client() as idle:
        reader.sendall(request("GET", "/events"))
        assert reader.recv(4096).startswith(b"HTTP/1.1 200")
        wait(lambda: rig.events.hub.heard)
        assert ask(idle, "POST", "/add")[0] == 200
        rig._loop.call_soon_threadsafe(rig.server.close)  # before the request is handled
        waiting.sendall(request("POST", "/add"))
        rig.events.emit("ended")
        data = b""
        while got := reader.recv(4096):
            data += got
        assert data.endswith(b"0\r\n\r\n")
        assert idle.recv(1) == b""


def test_a_feed_that_has_ended_takes_nothing_more(rig: Rig) -> None:
    with rig.client() as reader:
        reader.sendall(request("GET", "/events"))
        assert reader.recv(4096).startswith(b"HTTP/1.1 200")
        wait(lambda: rig.events.hub.heard)
        (channel,) = rig.events.hub._channels
        rig.events.emit("first")
        channel.end()
        rig.events.emit("late")
        data = b""
        while got := reader.recv(4096):
            data += got
            rig.events.emit("later")
        assert b'"first"' in data
        assert data.endswith(b"0\r\n\r\n")
    with rig.client() as another:
        assert ask(another, "POST", "/add")[0] == 200
    assert not rig.recorded["control-failed"]


def test_a_mistake_in_the_server_costs_connections_not_the_thread(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rig.client() as client, monkeypatch.context() as patched:
        patched.setattr(connection.Connection, "_take", lambda *_: 1 // 0)
        client.sendall(request("POST", "/add"))
        assert client.recv(1) == b""
    with rig.client() as another:
        assert ask(another, "POST", "/add")[0] == 200
    assert "ZeroDivisionError" in str(rig.recorded["control-failed"])


def test_an_outbox_has_a_bound_and_counts_what_it_does_not_take() -> None:
    box = Outbox(lambda missing: b"<%d>" % missing, 8)
    assert box.put(b"abcdef")
    assert not box.put(b"ghi")
    assert not box.put(b"j")
    assert box.take(2) == b"ab"
    rest = b"".join(iter(lambda: box.take(100), b""))
    assert rest == b"cdef<4>"
    assert box.put(b"k")
