"""One daemon for one connection after another."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.recorded import Recorded
from vmm.errors import HostError
from vmm.events import COMPLAINTS
from vmm.virtio.vhost import service
from vmm.virtio.vhost.service import Service


def test_a_guest_that_resets_its_device_all_day_does_not_fill_the_log(
    events: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each driver gets a new process, which writes lines."""
    monkeypatch.setattr(service, "STARTS", 1000)
    script = "echo up >&2; read line <&3; exit 3"
    with Service(lambda _fd: ["/bin/sh", "-c", script], events, what="--disk x") as started:
        for _ in range(COMPLAINTS + 10):
            started.connect().close()
            assert started.explain("ended").startswith("sh ended (status 3): ")
    assert {name for name, _ in events.seen} == {"daemon-started", "daemon-said", "daemon-ended"}
    assert set(Counter(events.names()).values()) == {COMPLAINTS}


def test_a_guest_cannot_start_processes_without_end(
    events: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "STARTS", 3)
    with Service(lambda _fd: ["/bin/cat"], events, what="--disk x") as started:
        for _ in range(3):
            started.connect().close()
        with pytest.raises(HostError, match="--disk x: 3 processes were started within 60 s"):
            started.connect()
        assert events.names().count("daemon-started") == 3
        monkeypatch.setattr(service, "WITHIN", 0.0)
        started.connect().close()
