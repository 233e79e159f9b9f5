"""rtnetlink's answers that make no sense: an error that says what was asked, and no traceback."""

from __future__ import annotations

import socket
import struct

import pytest

from vmm._native import lib
from vmm.virtio.net.netlink import Netlink, NetlinkError


def answer(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


@pytest.mark.parametrize(
    "said",
    [
        b"short",
        answer(lib.NLMSG_ERROR, b""),
        answer(lib.NLMSG_ERROR, struct.pack("=iIHHII", -(1 << 31), 16, 18, 5, 1, 0)),
        answer(lib.NLMSG_ERROR, struct.pack("=iIHHII", 1, 16, 18, 5, 1, 0)),
        answer(lib.RTM_NEWLINK, bytes(15)),
    ],
    ids=["no header", "no error in it", "no errno", "a positive number", "no link in it"],
)
def test_an_answer_that_makes_no_sense_is_an_error(said: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with Netlink() as netlink, theirs:
        netlink._socket.close()
        netlink._socket = ours
        theirs.send(said)
        with pytest.raises(NetlinkError, match="looking up tap0: Bad message"):
            netlink.link("tap0")
