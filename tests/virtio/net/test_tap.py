"""TAP interfaces and rtnetlink, on this machine's kernel: as root only."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_interface
from pathlib import Path

import pytest

from vmm._native import lib
from vmm.errors import HostError, KernelError, UserError
from vmm.virtio.net.netlink import Link, Netlink, NetlinkError
from vmm.virtio.net.tap import PATH, Tap, TapQueue

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access(PATH, os.R_OK), reason=f"needs root, and {PATH}"
)

OPTION = "--net tap"


@pytest.fixture
def name() -> str:
    """Return an unused name for an interface."""
    return f"vm{secrets.token_hex(4)}"


@pytest.fixture
def netlink() -> Iterator[Netlink]:
    with Netlink() as netlink:
        yield netlink


def found(netlink: Netlink, name: str) -> Link:
    link = netlink.link(name)
    assert link is not None
    return link


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def test_an_interface_is_made_and_goes_again(netlink: Netlink, name: str) -> None:
    with Tap(name, 1, OPTION) as tap:
        assert tap.name == name
        link = found(netlink, name)
        assert not link.is_up
        assert link.ifindex == socket.if_nametoindex(name)
    assert netlink.link(name) is None
    tap.close()


def test_one_without_a_name_gets_one(netlink: Netlink) -> None:
    with Tap("", 1, OPTION) as one, Tap("", 1, OPTION) as two:
        assert one.name.startswith("tap")
        assert one.name != two.name
        assert netlink.link(two.name)


def test_it_comes_up_with_mtu_and_addresses(netlink: Netlink, name: str) -> None:
    with Tap(name, 1, OPTION) as tap:
        for text in ("10.254.77.1/24", "fd00:77::1/64"):
            for _ in range(2):
                tap.configure(mtu=9000, bridge=None, address=ip_interface(text))
            assert f" {text} " in ip("addr", "show", name)
        link = found(netlink, name)
        assert link.is_up
        assert link.mtu == 9000


def test_it_joins_a_bridge(netlink: Netlink, name: str) -> None:
    bridge = f"{name}br"
    ip("link", "add", bridge, "type", "bridge")
    try:
        with Tap(name, 1, OPTION) as tap:
            tap.configure(mtu=None, bridge=bridge, address=None)
            assert found(netlink, name).master == found(netlink, bridge).ifindex
    finally:
        ip("link", "del", bridge)


def test_what_is_no_bridge_is_refused(name: str) -> None:
    with Tap(name, 1, OPTION) as tap:
        with pytest.raises(UserError, match=r"--net tap: there is no interface br99; make the"):
            tap.configure(mtu=None, bridge="br99", address=None)
        with pytest.raises(KernelError, match=r"--net tap: bringing .* up: .*; .* is no bridge"):
            tap.configure(mtu=None, bridge="lo", address=None)


def test_the_kernel_says_itself_what_it_does_not_like(name: str) -> None:
    with (
        Tap(name, 1, OPTION) as tap,
        pytest.raises(KernelError, match=r"Invalid argument; mtu less than device minimum"),
    ):
        tap.configure(mtu=20, bridge=None, address=None)


@pytest.mark.parametrize(
    ("queues", "wanted", "error"),
    [
        (1, 1, "busy; another program"),
        (2, 1, "another program"),
        (2, 2, "another program"),
        (1, 2, "not one for several queues"),
    ],
)
def test_nobody_shares_an_interface(name: str, queues: int, wanted: int, error: str) -> None:
    """The kernel itself would let several programs open queues of one."""
    with (
        Tap(name, queues, OPTION),
        pytest.raises((HostError, UserError), match=f"--net tap: .*{error}"),
    ):
        Tap(name, wanted, OPTION)


def test_what_is_no_tap_is_refused() -> None:
    with pytest.raises(KernelError, match=r"--net tap: TUNSETIFF.*Invalid argument; .* is no TAP"):
        Tap("lo", 1, OPTION)


@pytest.mark.parametrize("multi_queue", [False, True])
def test_an_interface_that_is_there_is_used_and_stays(
    netlink: Netlink, name: str, *, multi_queue: bool
) -> None:
    ip("tuntap", "add", name, "mode", "tap", *(["multi_queue"] if multi_queue else []))
    try:
        for queues in (1, 3) if multi_queue else (1,):
            with Tap(name, queues, OPTION) as tap:
                tap.configure(mtu=None, bridge=None, address=None)
                assert len(tap.queues) == queues
            assert found(netlink, name).tun_queues == 0
        if not multi_queue:
            with pytest.raises(KernelError, match=r"not one for several queues"):
                Tap(name, 2, OPTION)
    finally:
        ip("tuntap", "del", name, "mode", "tap", *(["multi_queue"] if multi_queue else []))


def test_queues_are_attached_as_the_driver_asks(netlink: Netlink, name: str) -> None:
    with Tap(name, 4, OPTION) as tap:
        for pairs in (1, 4, 2, 2, 3, 1):
            tap.set_pairs(pairs)
            assert found(netlink, name).tun_queues == 4
            queues = Path(f"/sys/class/net/{name}/queues")
            assert len(list(queues.glob("tx-*"))) == pairs


def test_offloads_are_taken_or_refused(name: str) -> None:
    with Tap(name, 1, OPTION) as tap:
        for flags in (0, lib.TUN_F_CSUM, lib.TUN_F_CSUM | lib.TUN_F_TSO4 | lib.TUN_F_TSO6):
            tap.set_offload(flags)
        with pytest.raises(KernelError, match=r"does not know one of these offloads"):
            tap.set_offload(1 << 20)


def test_a_missing_node_names_the_module(tmp_path: Path) -> None:
    with pytest.raises(
        HostError, match=r"--net tap: cannot open .*; load its module: modprobe tun"
    ):
        TapQueue(str(tmp_path / "tun"), OPTION)


def test_netlink_says_who_is_not_there(netlink: Netlink) -> None:
    assert netlink.link("nobody-has-it") is None
    nowhere = Link(1 << 30, "gone", is_up=False, mtu=0, master=0, tun_queues=0)
    with pytest.raises(NetlinkError, match=r"bringing gone up: No such device"):
        netlink.set_link(nowhere)


def test_closing_leaves_nothing(name: str) -> None:
    before = {entry.name for entry in Path("/proc/self/fd").iterdir()}
    with Tap(name, 3, OPTION) as tap:
        tap.configure(mtu=None, bridge=None, address=None)
    for wrong in ("lo", "lo"):
        with pytest.raises(KernelError):
            Tap(wrong, 1, OPTION)
    assert {entry.name for entry in Path("/proc/self/fd").iterdir()} == before
