"""vhost-user: what goes over the socket, and daemons that send garbage."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from threading import enumerate as enumerate_threads
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recorded import Recorded
from tests.virtio.block.blk_driver import wait
from tests.virtio.mmio_driver import MmioDriver
from tests.virtio.ring_driver import Memory, SplitDriver
from tests.virtio.vhost.fake_daemon import CONFIG, FEATURES, Answer, FakeService, framed, right
from vmm.errors import HostError, UserError
from vmm.fd import EventFd
from vmm.memory import Mapping
from vmm.virtio import status
from vmm.virtio.block.vhost_user import VhostUserBlk
from vmm.virtio.queue import Format, MemoryMap, Queue
from vmm.virtio.transport.mmio import MmioTransport
from vmm.virtio.vhost import channel
from vmm.virtio.vhost.backend import Ring
from vmm.virtio.vhost.message import NEED_REPLY, REPLY, VERSION, Protocol, Request
from vmm.virtio.vhost.user import DaemonLostError, VhostUser

PATIENCE = 0.05


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory(Mapping.memfd)
    yield memory
    memory.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "PATIENCE", 5.0)


def ring(memory: Memory, bells: list[EventFd]) -> Ring:
    driver = SplitDriver(memory)
    queue = Queue(MemoryMap(memory.guest), driver.size, driver.areas, Format())
    kick, call, err = (bell.fileno() for bell in bells)
    areas, packed = queue.host_areas, False
    return Ring(driver.size, driver.areas, areas, packed, 0, kick, call, err)


def use(service: FakeService, memory: Memory) -> int:
    """Do everything that a back end can be asked; return how far it got."""
    bells = [EventFd() for _ in range(3)]
    done = 0
    try:
        with VhostUser(service, Protocol.CONFIG) as backend:
            done = 1
            assert len(backend.read_config(60)) == 60
            for _ in range(2):
                backend.start(backend.features(), memory.guest)
                backend.start_ring(0, ring(memory, bells))
                done += 1
                backend.stop_ring(0)
                backend.stop()
    finally:
        for bell in bells:
            bell.close()
    return done


def test_all_goes_well_with_one_that_does_as_it_should(memory: Memory) -> None:
    service = FakeService()
    assert use(service, memory) == 3
    first, second = (daemon.requests for daemon in service.daemons)
    beginning = [Request.GET_FEATURES, Request.GET_PROTOCOL_FEATURES]
    beginning += [Request.SET_PROTOCOL_FEATURES, Request.SET_OWNER, Request.GET_QUEUE_NUM]
    assert first[:5] == second[:5] == beginning
    assert first[5] == Request.GET_CONFIG
    assert first[6:] == second[5:]
    ringing = second[5:]
    assert ringing[:2] == [Request.SET_FEATURES, Request.SET_MEM_TABLE]
    assert ringing[-1] == Request.SET_VRING_ENABLE, "then it is ended, and asked nothing"
    assert ringing.index(Request.SET_VRING_KICK) > ringing.index(Request.SET_VRING_ADDR)


def test_only_what_we_can_follow_is_offered() -> None:
    """Not EVENT_IDX, nor packed rings: `Inflight` could not tell what a daemon had."""

    def all_of_them(_request: int, _answer: bytes) -> bytes:
        return framed(Request.GET_FEATURES, b"\xff" * 8)

    with VhostUser(FakeService([all_of_them])) as backend:
        assert backend.features() == (1 << 64) - 1 & ~(1 << 29 | 1 << 30 | 1 << 34)


def test_of_one_that_uses_chains_in_order_more_is_offered() -> None:
    """The used ring tells how far it got, if the ring is split."""

    def all_of_them(_request: int, _answer: bytes) -> bytes:
        return framed(Request.GET_FEATURES, b"\xff" * 8)

    with VhostUser(FakeService([all_of_them]), in_order=True) as backend:
        assert backend.features() == (1 << 64) - 1 & ~(1 << 30 | 1 << 34)


def test_another_goes_on_where_one_that_uses_chains_in_order_got_to(memory: Memory) -> None:
    service = FakeService()
    bells = [EventFd() for _ in range(3)]
    with VhostUser(service, in_order=True) as backend, ExitStack() as owned:
        for bell in bells:
            owned.enter_context(bell)
        backend.start(backend.features(), memory.guest)
        given = ring(memory, bells)
        backend.start_ring(0, given)
        assert not [each for each in enumerate_threads() if each.name == "inflight"]
        memory.pack(given.guest.driver, "HH", 0, 0x1003)
        memory.pack(given.guest.device, "HH", 1, 0x1001)  # do not notify; so many are used
        backend.kill()
        backend.restart(memory.guest)
        told = dict(service.daemons[-1].told)
        assert told[Request.SET_VRING_BASE] == struct.pack("=II", 0, 0x1001)
        assert memory.guest.read(given.guest.device, 4) == struct.pack("<HH", 0, 0x1001)


def test_memory_goes_over_with_its_files(memory: Memory) -> None:
    regions = list(memory.guest)
    assert [region.fd >= 0 for region in regions] == [True, True]
    assert use(FakeService(), memory) == 3


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda _request, _answer: None, "is gone at GET_FEATURES"),
        (lambda _request, _answer: b"", "does not answer GET_FEATURES"),
        (lambda _request, answer: answer[:5], "does not answer GET_FEATURES"),
        (lambda request, _answer: framed(request, b"\0"), "answered GET_FEATURES with 1 bytes"),
        (
            lambda request, _answer: struct.pack("=III", request, VERSION | REPLY, 1 << 31),
            "answered GET_FEATURES with 2147483648 bytes",
        ),
        (lambda _request, answer: framed(7, answer[12:]), "with request 7, .*no vhost-user"),
        (
            lambda request, answer: framed(request, answer[12:], VERSION | NEED_REPLY),
            "flags 0x9: no vhost-user",
        ),
        (lambda _request, _answer: b"HTTP/1.1 400 Bad Request\r\n\r\n", "no vhost-user"),
        (lambda request, _answer: framed(request, bytes(8)), "knows no protocol features"),
    ],
)
def test_nonsense_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, rule: Answer, message: str
) -> None:
    monkeypatch.setattr(channel, "PATIENCE", PATIENCE)
    with pytest.raises(HostError, match=f"--disk fake: the daemon .*{message}"):
        VhostUser(FakeService([rule]))


def test_one_that_lacks_what_we_need_is_named() -> None:
    def nothing(request: int, _answer: bytes) -> bytes:
        return framed(request, bytes(8))

    with pytest.raises(HostError, match="lacks CONFIG"):
        VhostUser(FakeService([right, nothing]), Protocol.CONFIG)


def test_a_refusal_is_named(memory: Memory) -> None:
    def refuse(request: int, answer: bytes) -> bytes:
        return framed(request, struct.pack("=Q", 22)) if request == 5 else answer

    with pytest.raises(HostError, match="the daemon refused SET_MEM_TABLE"):
        use(FakeService([refuse] * 10), memory)


def test_a_daemon_that_speaks_slowly_is_waited_for_no_longer_than_one_that_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel, "PATIENCE", 0.3)

    def slowly(_request: int, answer: bytes) -> bytes:
        service.daemons[-1].say(answer[:1])
        time.sleep(0.2)
        service.daemons[-1].say(answer[1:2])
        time.sleep(0.2)
        return b""

    service = FakeService([slowly])
    began = time.monotonic()
    with pytest.raises(HostError, match="does not answer"):
        VhostUser(service)
    assert time.monotonic() - began < 2


NONSENSE = st.one_of(
    st.just(right),
    st.just(right),
    st.just(right),
    st.just(lambda _request, _answer: None),
    st.binary(max_size=40).map(lambda data: lambda _request, _answer: data),
    st.binary(max_size=90).map(lambda data: lambda request, _answer: framed(request, data)),
    st.integers(0, 1 << 64).map(
        lambda number: (
            lambda request, _answer: framed(request, struct.pack("=Q", number & (1 << 64) - 1))
        )
    ),
    st.tuples(st.integers(0, 50), st.integers(0, 15)).map(
        lambda pair: lambda _request, answer: framed(pair[0], answer[12:], pair[1])
    ),
    st.integers(0, 30).map(lambda size: lambda _request, answer: answer[:size]),
    st.binary(min_size=1, max_size=20).map(lambda data: lambda _request, answer: answer + data),
)


@given(st.lists(NONSENSE, max_size=16), st.booleans())
def test_no_nonsense_is_more_than_an_error(script: list[Answer], fds: bool) -> None:  # noqa: FBT001
    """Any garbage, also with descriptors: no other error, and no descriptor stays open."""
    memory = Memory(Mapping.memfd)
    null = os.open(os.devnull, os.O_RDONLY)
    before = len(list(Path("/proc/self/fd").iterdir()))
    patience, channel.PATIENCE = channel.PATIENCE, 0.02  # type: ignore[misc]
    said = "--disk fake"
    try:
        use(FakeService(script, script[::-1], fds=[null] if fds else ()), memory)
    except HostError as error:
        said = str(error)
    finally:
        channel.PATIENCE = patience  # type: ignore[misc]
    assert "--disk fake" in said
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    os.close(null)
    memory.close()


# --- a device -----------------------------------------------------------------------------------


def begin(driver: MmioDriver, memory: Memory) -> None:
    ring = SplitDriver(memory)
    memory.guest.write(ring.areas.descriptors, bytes(0x1_0000))
    driver.start(ring.size, ring.areas, 1 << 28)


def device_of(service: FakeService, memory: Memory, events: Recorded) -> VhostUserBlk:
    return VhostUserBlk("disk0", MemoryMap(memory.guest), events, service)  # type: ignore[arg-type]


def test_a_device_has_the_daemons_configuration_and_features(
    memory: Memory, events: Recorded
) -> None:
    with MmioTransport(device_of(FakeService(), memory, events)) as transport:
        driver = MmioDriver(transport)
        found = bytes(transport.read(0x100 + at, 1) for at in range(60))
        assert found == CONFIG
        assert driver.offered() == FEATURES & ~(1 << 30)


def test_no_more_queues_are_shown_than_the_daemon_has(memory: Memory, events: Recorded) -> None:
    known = MemoryMap(memory.guest)
    with pytest.raises(UserError, match="--disk fake: the daemon has no more than 2 queues"):
        VhostUserBlk("disk0", known, events, FakeService(), queues=3)  # type: ignore[arg-type]
    with VhostUserBlk("disk0", known, events, FakeService(), queues=2) as device:  # type: ignore[arg-type]
        assert len(device.slots) == 2


@pytest.mark.parametrize("said", [b"\0", b"nonsense", framed(2, bytes(8), VERSION)])
def test_a_daemon_that_speaks_unasked_is_replaced(
    memory: Memory, events: Recorded, said: bytes
) -> None:
    service = FakeService()
    with MmioTransport(device_of(service, memory, events)) as transport:
        begin(MmioDriver(transport), memory)
        device = transport.device
        service.daemons[-1].say(said)

        def restarted() -> bool:
            device.attend()  # type: ignore[attr-defined]
            return "vhost-user-restarted" in events.names()

        wait(restarted)
        assert len(service.daemons) == 2
        assert Request.SET_VRING_KICK in service.daemons[1].requests


def test_a_driver_whose_daemon_will_not_start_sees_a_broken_device(
    memory: Memory, events: Recorded
) -> None:
    def hang_up(_request: int, _answer: bytes) -> None:
        return None

    service = FakeService([], [hang_up])
    with MmioTransport(device_of(service, memory, events)) as transport:
        driver = MmioDriver(transport)
        begin(driver, memory)
        driver.store("Status", 0)  # ends the first daemon; the second hangs up
        begin(driver, memory)
        assert driver.load("Status") & status.NEEDS_RESET
        assert "virtio-needs-reset" in events.names()
        begin(driver, memory)
        assert not driver.load("Status") & status.NEEDS_RESET


def test_one_that_is_lost_while_it_takes_over_can_be_told_from_one_that_refuses() -> None:
    with pytest.raises(DaemonLostError):
        VhostUser(FakeService([right, lambda _request, _answer: None]))


# --- one that hangs -----------------------------------------------------------------------------


def silence(_request: int, _answer: bytes) -> bytes:
    """Say nothing."""
    return b""


class Hung(NamedTuple):
    """A device that a vCPU's driver has just started, and that waits for a daemon."""

    device: VhostUserBlk
    driver: MmioDriver
    vcpu: Thread


@pytest.fixture
def hung(memory: Memory, events: Recorded, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hung]:
    monkeypatch.setattr(channel, "PATIENCE", 60.0)
    service = FakeService([], [silence])
    with MmioTransport(device_of(service, memory, events)) as transport:
        service.daemons[0].hang_up()  # so that the first driver gets the second
        driver = MmioDriver(transport)
        vcpu = Thread(target=begin, args=(driver, memory))
        vcpu.start()
        wait(lambda: len(service.daemons) == 2)
        assert isinstance(transport.device, VhostUserBlk)
        yield Hung(transport.device, driver, vcpu)
        transport.device.cancel_waits()
        vcpu.join(10)


def test_the_loop_does_not_wait_with_a_vcpu(hung: Hung) -> None:
    began = time.monotonic()
    hung.device.attend()
    assert time.monotonic() - began < 1
    assert hung.vcpu.is_alive()


def test_a_vcpu_is_helped_out_of_making_a_driver_ready(hung: Hung) -> None:
    hung.device.cancel_waits()
    hung.vcpu.join(10)
    assert not hung.vcpu.is_alive()
    assert hung.driver.load("Status") & status.NEEDS_RESET


def test_a_reset_does_not_wait_for_a_daemon_that_takes_over(
    memory: Memory, events: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "PATIENCE", 60.0)
    service = FakeService([], [silence])
    with MmioTransport(device_of(service, memory, events)) as transport:
        driver = MmioDriver(transport)
        begin(driver, memory)
        service.daemons[0].hang_up()

        def taking_over() -> bool:
            transport.device.attend()  # type: ignore[attr-defined]
            return len(service.daemons) == 2

        wait(taking_over)
        began = time.monotonic()
        transport.device.attend()  # type: ignore[attr-defined]
        driver.store("Status", 0)
        assert time.monotonic() - began < 5
        begin(driver, memory)
        assert driver.load("Status") == status.LIVE
    assert "virtio-needs-reset" not in events.names()
