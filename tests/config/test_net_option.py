"""``--net`` and ``--vsock``: what users write, and what it means."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest

from vmm.config.net import Forward, NetConfig, NetKind, parse_net, parse_nets
from vmm.config.vsock import parse_vsock
from vmm.errors import UserError


def test_a_tap_by_itself_is_one_that_is_made() -> None:
    assert parse_net("tap") == NetConfig("tap", NetKind.TAP)


def test_a_tap_takes_all_its_options() -> None:
    text = (
        "tap=vm0,mac=52:54:00:Ab:cd:ef,mtu=9000,queues=4,vhost=off,bridge=br0,address=10.0.0.1/24"
    )
    config = parse_net(text)
    assert config.name == "vm0"
    assert config.mac == bytes.fromhex("525400abcdef")
    assert (config.mtu, config.queues, config.vhost, config.bridge) == (9000, 4, False, "br0")
    assert config.address == ip_interface("10.0.0.1/24")
    assert config.option == f"--net {text}"
    assert not config.shares_memory


def test_user_networking_forwards_ports() -> None:
    config = parse_net("user,forward=tcp:8080:80,forward=udp:53:5353,mtu=1500")
    assert config.kind is NetKind.USER
    assert config.forwards == (Forward("tcp", 8080, 80), Forward("udp", 53, 5353))
    assert config.shares_memory


def test_none_is_none_and_nothing_else() -> None:
    assert parse_nets(()) == parse_nets(("none",)) == ()
    assert [each.kind for each in parse_nets(("user", "tap"))] == [NetKind.USER, NetKind.TAP]
    with pytest.raises(UserError, match="--net none: there are others; leave it out"):
        parse_nets(("tap", "none"))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "'' is no kind of network"),
        ("bridge", "'bridge' is no kind"),
        ("user=x", "'user=x' is no kind"),
        ("tap=", "'' is no interface's name"),
        ("tap=a/b", "'a/b' is no interface's name"),
        ("tap=tap%d", "'tap%d' is no interface's name"),
        ("tap=abcdefghijklmnop", "up to 15 characters"),
        ("tap,", "cannot use ''"),
        ("tap,forward=tcp:1:1", "cannot use 'forward=tcp:1:1'; write tap"),
        ("user,queues=2", "cannot use 'queues=2'; write tap"),
        ("user,vhost=on", "cannot use 'vhost=on'"),
        ("tap,mac=52:54:00:12:34", "an address is six bytes"),
        ("tap,mac=01:00:5e:00:00:01", "multicast"),
        ("tap,mac=00:00:00:00:00:00", "or none"),
        ("tap,mtu=67", "mtu is from 68 to 65535"),
        ("tap,mtu=65536", "mtu is from 68 to 65535"),
        ("tap,mtu=", "mtu is from 68"),
        ("tap,queues=0", "queues is from 1 to 64"),
        ("tap,queues=65", "queues is from 1 to 64"),
        ("tap,queues=\N{SUPERSCRIPT TWO}", "queues is from 1 to 64"),
        ("tap,vhost", "vhost is on or off"),
        ("tap,vhost=maybe", "vhost is on or off"),
        ("tap,bridge=", "name a bridge"),
        ("tap,address=10.0.0.1", "with its network"),
        ("tap,address=10.0.0.256/24", "10.0.0.256/24"),
        ("user,forward=tcp:80", "write forward=tcp:HOST:GUEST"),
        ("user,forward=sctp:80:80", "write forward=tcp:HOST:GUEST"),
        ("user,forward=tcp:0:80", "ports up to 65535"),
        ("user,forward=tcp:80:65536", "ports up to 65535"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line_that_names_it(text: str, error: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_net(text)
    assert str(raised.value).startswith(f"--net {text}: ")
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_context_id_is_one_that_a_guest_can_have() -> None:
    assert parse_vsock("3") == 3
    assert parse_vsock("4294967294") == (1 << 32) - 2
    for text in ("0", "2", "4294967295", "-3", "three", ""):
        with pytest.raises(
            UserError, match=r"--vsock: .* is no guest's context ID; use one from 3"
        ):
            parse_vsock(text)


def test_the_loopback_of_the_host_is_for_passt_and_asked_for() -> None:
    assert not parse_net("user").reaches_host
    assert parse_net("user,host=on").reaches_host
    assert not parse_net("user,host=off").reaches_host
    with pytest.raises(UserError, match="host is on or off"):
        parse_net("user,host=yes")
    with pytest.raises(UserError, match="cannot use 'host=on'"):
        parse_net("tap,host=on")
