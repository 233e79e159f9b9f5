"""``--incoming``: addresses."""

from __future__ import annotations

import pytest

from vmm.config.incoming import PeerConfig, parse_incoming
from vmm.errors import UserError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("unix:/run/a b", PeerConfig(path="/run/a b")),
        ("tcp:host:1", PeerConfig(host="host", port=1)),
        ("tcp:[::1]:65535", PeerConfig(host="::1", port=65535)),
    ],
)
def test_an_address_is_read(text: str, wanted: PeerConfig) -> None:
    assert parse_incoming(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "unix:", "tcp:host", "tcp::1", "tcp:host:0", "tcp:host:65536", "tcp:host:x", "x:y"]
)
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no address; write unix:PATH or tcp:HOST:PORT"):
        parse_incoming(text)
