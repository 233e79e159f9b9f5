"""One daemon for one connection after another."""

from __future__ import annotations

from collections import Counter

from tests.recorded import Recorded
from vmm.events import COMPLAINTS
from vmm.virtio.vhost.service import Service


def test_a_guest_that_resets_its_device_all_day_does_not_fill_the_log(events: Recorded) -> None:
    """Each driver gets a new process, which writes lines."""
    script = "echo up >&2; read line <&3; exit 3"
    with Service(lambda _fd: ["/bin/sh", "-c", script], events, what="--disk x") as service:
        for _ in range(COMPLAINTS + 10):
            service.connect().close()
            assert service.explain("ended").startswith("sh ended (status 3): ")
    assert {name for name, _ in events.seen} == {"daemon-started", "daemon-said", "daemon-ended"}
    assert set(Counter(events.names()).values()) == {COMPLAINTS}
