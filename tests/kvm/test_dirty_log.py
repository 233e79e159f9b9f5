"""KVM's dirty log under a guest that stores, and its memory moved by it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from threading import Thread

import pytest

from tests.kvm.tiny import DATA, DATA_PAGES, PAGE, Again, Store, Tiny, Touch
from vmm._native import ffi
from vmm.coherence.ledger import Entry, Ledger
from vmm.coherence.policy import MANAGED, Promise, Stage2
from vmm.dirty_pages import DirtyPages
from vmm.errors import HostError
from vmm.kvm.capability import Cap
from vmm.kvm.dirty_log import DirtyLog
from vmm.memory import Backing, Mapping, Region
from vmm.state.precopy import Precopy, Told
from vmm.state.reception import Reception
from vmm.state.stream import Channel

pytestmark = pytest.mark.kvm
Start = Callable[..., Tiny]


def log_of(guest: Tiny) -> DirtyLog:
    slot = guest.slots.find(DATA)
    assert slot is not None
    log = DirtyLog(guest.vm, guest.slots, slot, DATA_PAGES)
    log.start()
    return log


def fetched(log: DirtyLog) -> int:
    bitmap = ffi.new("uint64_t[1]")
    assert log.fetch(bitmap) == int(bitmap[0]).bit_count()
    return int(bitmap[0])


def cleared(log: DirtyLog, pages: int) -> None:
    log.clear(0, DATA_PAGES, ffi.new("uint64_t[1]", [pages]))


def test_a_page_is_told_again_once_it_was_cleared(tiny: Start) -> None:
    guest = tiny(Touch(0), Store(0, 0), Touch(3), Store(0, 0), Again())
    log = log_of(guest)
    cleared(log, fetched(log))  # KVM_DIRTY_LOG_INITIALLY_SET: all pages, at first
    assert fetched(log) == 0
    guest.vcpu.run()
    assert fetched(log) == 0b0001
    cleared(log, 0b0001)
    guest.vcpu.run()
    assert fetched(log) == 0b1000
    guest.vcpu.run()
    assert fetched(log) & 0b0001


@pytest.mark.parametrize("manual", [True, False])
def test_a_page_stays_dirty_until_it_is_cleared(
    tiny: Start, monkeypatch: pytest.MonkeyPatch, *, manual: bool
) -> None:
    """An older kernel, without KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, clears what it tells."""
    guest = tiny(Touch(2), Store(0, 0), Again())
    if not manual:
        monkeypatch.setattr(type(guest.vm), "check_extension", lambda _vm, _cap: 0)
    elif not guest.vm.check_extension(Cap.MANUAL_DIRTY_LOG_PROTECT2):
        pytest.skip("this KVM clears what it tells")
    log = log_of(guest)
    cleared(log, fetched(log))
    guest.vcpu.run()
    assert fetched(log) == 0b0100
    assert fetched(log) == (0b0100 if manual else 0)


def test_a_log_ends_with_its_vm(tiny: Start) -> None:
    guest = tiny(Touch(0), Store(0, 0), Again())
    log = log_of(guest)
    log.forget()
    with pytest.raises(HostError, match="was reset, or has ended"):
        fetched(log)
    log.stop()  # of nothing


def test_without_a_log_no_page_is_told(tiny: Start) -> None:
    guest = tiny(Touch(0), Store(0, 0), Again())
    log = log_of(guest)
    log.stop()
    slot = guest.slots.find(DATA)
    assert slot is not None
    assert slot.flags == 0


def test_a_guests_memory_moves_while_it_stores(tiny: Start) -> None:
    """The guest stores to a page in each round, after this process has cleared its bytes."""
    program = [op for page in range(DATA_PAGES) for op in (Touch(page), Store(0, 0))]
    guest = tiny(*program, Again())
    size = DATA_PAGES * PAGE
    source = Region(DATA, guest.data.view)
    promise = Promise(Stage2.FORCED_WRITE_BACK, "a test")
    ledger = Ledger([Entry("RAM", DATA, size, Backing.ANONYMOUS, MANAGED, promise, 0)])
    own = DirtyPages(source.host_address, size)
    with ExitStack() as owned:
        target = owned.enter_context(Mapping.anonymous(size)).region(DATA)
        near, far = (owned.enter_context(Channel(end, "peer")) for end in socket.socketpair())
        log = log_of(guest)
        own.start()
        pull = Thread(target=Reception(target, [far]).run, daemon=True)
        pull.start()
        found: list[Told] = []

        def tell(told: Told) -> None:
            found.append(told)
            guest.vcpu.run()

        precopy = Precopy(source, log, own, ledger, [near], goal=10.0, tell=tell)
        precopy.run()
        guest.vcpu.run()
        precopy.collect()
        precopy.finish()
        pull.join(20)
        assert not pull.is_alive()
        assert found
        assert guest.data.view[0] == guest.data.view[PAGE] == 1
        assert bytes(target.view) == bytes(source.view)
        target.view.release()
