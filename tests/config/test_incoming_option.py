"""``--incoming``: addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.config.incoming import PeerConfig, parse_incoming
from vmm.errors import UserError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("unix:/run/a b", PeerConfig(path="/run/a b")),
        ("tcp:host:1,tls=off", PeerConfig(host="host", port=1)),
        ("tcp:[::1]:65535,tls=/a,,b", PeerConfig(host="::1", port=65535, tls=Path("/a,b"))),
    ],
)
def test_an_address_is_read(text: str, wanted: PeerConfig) -> None:
    assert parse_incoming(text) == wanted
    assert parse_incoming(str(wanted).replace("a,b", "a,,b")) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tcp:host:1", "host:1: whoever reaches that port could read the guest.*add ,tls=DIR"),
        ("tcp:host:1,tls=", "cannot use 'tls='"),
        ("tcp:host:1,tsl=off", "did you mean tls"),
        ("tcp:host:65536,tls=off", "has no port of TCP"),
        ("tcp:host:0,tls=off", "has no port of TCP"),
    ],
)
def test_tcp_says_whom_it_trusts(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        parse_incoming(text)


@pytest.mark.parametrize(
    "text", ["", "unix:", "unix:a,tls=off", "tcp:host", "tcp::1", "tcp:host:x", "x:y"]
)
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no address; write unix:PATH or tcp:HOST:PORT"):
        parse_incoming(text)
