"""Targets: what daemons, the kernel and clients of the lab send."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

from tests.control import test_hostile_client
from tests.fuzz.given import Given
from tests.fuzz.target import Target, by_choices, by_property
from tests.recorded import Recorded
from tests.state import moving
from tests.state.golden import golden
from tests.state.snapshots import STATE
from tests.vfio import test_region_info
from tests.virtio.mmio_driver import MmioDriver
from tests.virtio.ring_driver import BASE, BUFFERS, SECOND, SIZE, Buffer, Memory, SplitDriver
from tests.virtio.vhost import test_messages
from tests.virtio.vhost.fake_daemon import FakeService
from vmm._native import ffi, lib
from vmm.errors import VmmError
from vmm.lab import protocol
from vmm.lab.inside import agent
from vmm.memory import Mapping
from vmm.state import migration_messages
from vmm.state.manifest import DiskFile
from vmm.state.migration_messages import (
    FORMAT,
    NAMES,
    VERSION,
    Answer,
    Failed,
    Go,
    Join,
    Offer,
    Ready,
    Rest,
    Running,
)
from vmm.state.stream import Channel
from vmm.typed_json import encode
from vmm.virtio.block.vhost_user import VhostUserBlk
from vmm.virtio.net.netlink import Link, Netlink, NetlinkError
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport

TOKEN = b"6f0d29c1"
NETLINK = ffi.sizeof("struct nlmsghdr")
HEARD = {"virtio-needs-reset", "vhost-user-restarted", "vhost-failed"}


# --- live migration -----------------------------------------------------------------------------


def migration(data: bytes) -> None:
    """Let a source send *data*: pages, an error, or the end of the round."""
    with suppress(VmmError):
        assert len(moving.received(data)) == moving.PAGES * moving.PAGE


def migration_seeds() -> Sequence[bytes]:
    """Return whole streams."""
    page = moving.frame(moving.RAW, 1, moving.runs((1, 1)) + b"\1" * moving.PAGE)
    zeroes = moving.frame(moving.ZERO, 2, moving.runs((1, 1), (4, 3)))
    return [page + moving.END, zeroes + moving.END, zeroes + page + zeroes + moving.END]


def message(data: bytes) -> None:
    """Let a peer send *data* where the message that the first byte chooses is due."""
    kinds = sorted(NAMES, key=NAMES.__getitem__)
    kind = kinds[data[0] % len(kinds) if data else 0]
    ours, theirs = socket.socketpair()
    with theirs, Channel(ours, "the peer") as channel, suppress(VmmError):
        theirs.sendall(moving.frame(moving.TEXT, 0, data[1:]))
        found: object = channel.receive(kind)
        Channel(theirs, "the peer").send(found)
        assert channel.receive(kind) == found


def message_seeds() -> Sequence[bytes]:
    """Return a message of each kind that a test has one of."""
    memory = migration_messages.Memory(1 << 30, 1 << 20, 4096)
    cpu = golden("fwb").cpu
    sent: list[object] = [
        Offer(FORMAT, VERSION, cpu, {"config": None}, memory, [{"name": "RAM"}], 2, "0123abcd"),
        Join("0123abcd", 1),
        Answer(cpu, []),
        Rest(STATE, (DiskFile("/a", 512, 1),)),
        Ready(4096),
        Go(),
        Running(1.5),
        Failed("because", "what to do"),
    ]
    kinds = sorted(NAMES, key=NAMES.__getitem__)
    return [
        bytes([kinds.index(type(each))])
        + json.dumps({"message": NAMES[type(each)], **encode(each)}).encode()
        for each in sent
    ]


# --- netlink ------------------------------------------------------------------------------------


def netlink(data: bytes) -> None:
    """Let rtnetlink answer with *data*: a link, none, or an error that says what was asked."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with Netlink() as made, theirs:
        made._socket.close()
        made._socket = ours
        theirs.send(data)
        try:
            found = made.link("tap0")
        except NetlinkError:
            return
        assert found is None or isinstance(found, Link)


def _answer(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", NETLINK + len(body), kind, flags, 1, 0) + body


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


@cache
def of_netlink() -> Sequence[bytes]:
    tun = _attribute(lib.IFLA_TUN_NUM_QUEUES, struct.pack("=I", 2))
    kind = _attribute(lib.IFLA_INFO_KIND, b"tun\0") + _attribute(lib.IFLA_INFO_DATA, tun)
    attributes = _attribute(lib.IFLA_MTU, struct.pack("=I", 1500))
    attributes += _attribute(lib.IFLA_LINKINFO, kind)
    info = struct.pack("=BBHiII", 0, 0, 1, 7, 1, 0)
    refused = struct.pack("=i", -1) + struct.pack("=IHHII", NETLINK, 18, 5, 1, 0)
    words = _attribute(lib.NLMSGERR_ATTR_MSG, b"no\0")
    told = lib.NLM_F_ACK_TLVS | lib.NLM_F_CAPPED
    return [
        _answer(lib.RTM_NEWLINK, info + attributes),
        _answer(lib.NLMSG_ERROR, refused),
        _answer(lib.NLMSG_ERROR, refused + words, told),
    ]


# --- the lab's agent ----------------------------------------------------------------------------


def admission(data: bytes) -> None:
    """Say *data* to the agent before the token: only the very frame is let in, and no byte more."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        hello = protocol.frame(protocol.HELLO, TOKEN)
        assert agent._admit(ours, TOKEN) == data.startswith(hello)
        assert ours.recv(1 << 16) == data[len(hello) :]


def frames(data: bytes) -> None:
    """Cut *data* into frames, at once and byte by byte: the same ones, and none too long.

    A frame that is too long takes those along that came with it.
    """
    whole, ended = cut(data, 1)
    assert all(len(payload) <= protocol.MOST for _, payload in whole)
    for size in (7, len(data) or 1):
        found, too = cut(data, size)
        assert too == ended
        assert found == (whole[: len(found)] if ended else whole)


def cut(data: bytes, size: int) -> tuple[list[protocol.Frame], bool]:
    """Feed *data* in pieces of *size* bytes; return the frames, and whether one was too long."""
    cutter = protocol.Frames()
    seen: list[protocol.Frame] = []
    try:
        for at in range(0, len(data), size):
            seen += cutter.feed(data[at : at + size])
    except EOFError:
        return seen, True
    return seen, False


@cache
def of_frames() -> Sequence[bytes]:
    hello = protocol.frame(protocol.HELLO, TOKEN)
    run = protocol.frame(protocol.RUN, b'{"command": ["true"]}')
    return [hello + run, hello[:-1] + b"x", hello + run[:-3], protocol.frame(b"x") * 5]


# --- vhost-user ---------------------------------------------------------------------------------


def scribbler(given: Given) -> None:
    """Let a daemon write to its rings, to buffers, and anywhere in guest memory, and die.

    Whatever it wrote, pyvmm writes to no memory but its own device's rings, and a device that the
    daemon broke can be reset and used with the next one.
    """
    memory, events = Memory(Mapping.memfd), Recorded()
    service = FakeService()
    device = VhostUserBlk("disk0", MemoryMap(memory.guest), events, service)  # type: ignore[arg-type]
    with MmioTransport(device) as transport:
        driver, ring = MmioDriver(transport), SplitDriver(memory)
        areas = ring.areas
        for _ in range(4):
            driver.store("Status", 0)
            memory.guest.write(BASE, bytes(0x1_0000))
            ring = SplitDriver(memory)
            driver.start(ring.size, ring.areas)
            for _ in range(given.randrange(3)):
                ring.add(Buffer(BUFFERS, 16), Buffer(SECOND, 16, writable=True))
            for _ in range(given.randrange(8)):
                at = given.choice((*areas, BUFFERS, SECOND, BASE + given.randrange(SIZE - 64)))
                memory.guest.write(at + given.randrange(48), given.randbytes(given.randrange(16)))
            before = [mapping.view.tobytes() for mapping in memory.mappings]
            driver.store("QueueNotify", 0)
            if given.random() < 0.6:
                service.daemons[-1].hang_up()
                readers = dict(device.readers())
                for fd in list(readers):
                    readers[fd]()
            transport.reset()
            only_rings(memory, before, areas)
            if not given.more:
                break
        assert device.status == 0
    assert set(events.names()) <= HEARD
    memory.close()


def only_rings(memory: Memory, before: Sequence[bytes], areas: Sequence[int]) -> None:
    """Check that memory is as it was but for a kilobyte at each of the areas of a ring."""
    for mapping, base, was in zip(memory.mappings, (BASE, SECOND), before, strict=True):
        now, must = bytearray(mapping.view), bytearray(was)
        for area in areas:
            if 0 <= area - base < len(must):
                part = slice(area - base, area - base + 0x400)
                must[part] = now[part]
        assert now == must, "bytes outside the ring"


# ------------------------------------------------------------------------------------------------

TARGETS = (
    Target(
        "migration",
        "the stream of a live migration; pages or a clear error",
        migration,
        migration_seeds,
        3 * 4096,
    ),
    Target(
        "migration-message",
        "JSON of a migration's peer; a message or the member at fault",
        message,
        message_seeds,
        3 * 4096,
    ),
    Target("netlink", "the kernel's answers; a link or a clear error", netlink, of_netlink),
    Target("agent-token", "bytes before the token; only the token is let in", admission, of_frames),
    Target("agent-frames", "frames however the stream is cut", frames, of_frames),
    by_property(
        "control-client",
        "requests to a machine's socket, with descriptors; the loop goes on, none stays",
        test_hostile_client.test_whatever_a_client_sends_the_loop_goes_on,
    ),
    by_property(
        "vhost-user",
        "messages with descriptors; at most an error, and no descriptor stays",
        test_messages.test_no_nonsense_is_more_than_an_error,
    ),
    by_choices(
        "vhost-scribbler",
        "a daemon that writes anywhere and dies; pyvmm writes to its own ring only",
        scribbler,
    ),
    by_property(
        "vfio-region",
        "VFIO's answer on a region; nothing outside of it is mapped",
        test_region_info.test_no_answer_makes_us_loop_or_map_outside_the_region,
    ),
)
