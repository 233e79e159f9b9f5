"""Messages into a VM: the routes and irqfds that KVM gets; masked messages stay pending."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.recorded import Recorded
from vmm.errors import KernelError
from vmm.events import COMPLAINTS
from vmm.kvm.irq_routing import GSIS, IrqRouting
from vmm.kvm.vm import MsiRoute, PinRoute
from vmm.pci.msix import Message

DOORBELL = 0x0809_0040
FIRST = 224
PINS = [PinRoute(16, 16), PinRoute(49, 49)]


class FakeVm:
    """Keep the state that KVM would keep, and refuse what it would refuse."""

    def __init__(self) -> None:
        self.table: list[MsiRoute | PinRoute] = []
        self.irqfds: dict[int, int] = {}
        self.replaced = 0
        self.refused: set[int] = set()
        """Eventfds that it refuses for lack of memory."""

    def set_gsi_routing(self, routes: Sequence[MsiRoute | PinRoute]) -> None:
        assert len({route.gsi for route in routes}) == len(routes)
        assert all(route.gsi < GSIS for route in routes)
        self.table = list(routes)
        self.replaced += 1

    def irqfd(self, fd: int, gsi: int, *, deassign: bool = False) -> None:
        if deassign:
            assert self.irqfds.pop(fd) == gsi
        else:
            if fd in self.refused:
                raise KernelError("KVM_IRQFD", errno.ENOMEM)
            assert fd not in self.irqfds
            assert any(route.gsi == gsi for route in self.table), "it would be lost"
            self.irqfds[fd] = gsi

    def message(self, fd: int) -> MsiRoute | PinRoute:
        (route,) = (route for route in self.table if route.gsi == self.irqfds[fd])
        return route


@pytest.fixture
def events() -> Recorded:
    return Recorded()


@pytest.fixture
def vm() -> FakeVm:
    return FakeVm()


@pytest.fixture
def table(events: Recorded, vm: FakeVm) -> IrqRouting:
    table = IrqRouting([16, 49], FIRST, events)
    connect(table, vm)
    return table


def connect(table: IrqRouting, vm: Any, doorbell: int | None = DOORBELL) -> None:
    table.connect(vm, doorbell)


@pytest.fixture
def fds() -> Iterator[list[int]]:
    made = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(4)]
    yield made
    for fd in made:
        os.close(fd)


def test_a_message_goes_to_the_its_with_its_senders_name(table: IrqRouting, vm: FakeVm) -> None:
    function = table.function("disk0")
    function.requester = 3 << 3
    function.attach(1, 77)
    assert vm.irqfds == {}
    function.update({1: Message(DOORBELL, 0x21)})
    assert vm.message(77) == MsiRoute(FIRST, DOORBELL, 0x21, 0x18)
    assert vm.table[:2] == PINS, "what else has irqfds keeps its routes"


def test_several_vectors_are_one_replacement(table: IrqRouting, vm: FakeVm) -> None:
    function = table.function("disk0")
    function.update({vector: Message(DOORBELL, vector) for vector in range(16)})
    assert vm.replaced == 1
    assert len(vm.table) == 18


def test_masking_and_unmasking_leaves_the_table_alone(table: IrqRouting, vm: FakeVm) -> None:
    function = table.function("disk0")
    function.attach(0, 77)
    for _ in range(5):
        function.update({0: Message(DOORBELL, 1)})
        assert vm.irqfds == {77: FIRST}
        function.update({0: None})
        assert vm.irqfds == {}
    assert vm.replaced == 1


def test_a_message_that_changes_is_replaced_under_the_same_number(
    table: IrqRouting, vm: FakeVm
) -> None:
    function = table.function("disk0")
    function.attach(0, 77)
    function.update({0: Message(DOORBELL, 1)})
    function.update({0: Message(DOORBELL, 2)})
    assert vm.message(77) == MsiRoute(FIRST, DOORBELL, 2, 0)
    assert vm.replaced == 2


def test_functions_share_the_table(table: IrqRouting, vm: FakeVm) -> None:
    first, second = table.function("disk0"), table.function("rng")
    first.requester, second.requester = 8, 16
    first.attach(0, 70)
    second.attach(0, 71)
    first.update({0: Message(DOORBELL, 1)})
    second.update({0: Message(DOORBELL, 1)})
    assert (vm.message(70), vm.message(71)) == (
        MsiRoute(FIRST, DOORBELL, 1, 8),
        MsiRoute(FIRST + 1, DOORBELL, 1, 16),
    )


def test_eventfds_come_and_go_while_a_vector_sends(table: IrqRouting, vm: FakeVm) -> None:
    function = table.function("disk0")
    function.update({0: Message(DOORBELL, 1), 1: Message(DOORBELL, 2)})
    function.attach(0, 70)
    function.attach(0, 71)
    assert vm.irqfds == {70: FIRST, 71: FIRST}
    function.detach(70)
    function.attach(1, 70)
    assert vm.irqfds == {70: FIRST + 1, 71: FIRST}
    function.detach(70)
    function.detach(71)
    function.detach(71)
    assert vm.irqfds == {}


def test_what_a_masked_vector_was_told_is_pending(table: IrqRouting, fds: list[int]) -> None:
    function = table.function("disk0")
    assert not function.pending(0)
    function.attach(0, fds[0])
    function.attach(0, fds[1])
    function.attach(1, fds[2])
    assert not function.pending(0)
    os.eventfd_write(fds[1], 1)
    assert function.pending(0)
    assert not function.pending(1)


@pytest.mark.parametrize("address", [0, DOORBELL + 4, 0x4000_0000, 0xFEE0_0000, (1 << 64) - 4])
def test_a_message_to_nowhere_is_an_event(
    table: IrqRouting, vm: FakeVm, events: Recorded, address: int
) -> None:
    function = table.function("disk0")
    function.attach(0, 77)
    function.update({0: Message(DOORBELL, 1)})
    function.update({0: Message(address, 1)})
    assert vm.irqfds == {}
    ((name, fields),) = events.seen
    assert name == "msi-refused"
    assert (fields["device"], fields["vector"], fields["address"]) == ("disk0", 0, address)


def test_without_an_its_no_message_is_taken(events: Recorded, vm: FakeVm) -> None:
    table = IrqRouting([], FIRST, events)
    connect(table, vm, None)
    table.function("disk0").update({0: Message(DOORBELL, 1)})
    assert vm.table == []
    assert events.names() == ["msi-refused"]


def test_events_are_bounded(table: IrqRouting, events: Recorded) -> None:
    function = table.function("disk0")
    for data in range(3 * COMPLAINTS):
        function.update({0: Message(0, data)})
    assert len(events.seen) == COMPLAINTS


def test_more_vectors_than_kvm_has_routes_for_are_refused(
    table: IrqRouting, vm: FakeVm, events: Recorded
) -> None:
    functions = [table.function(f"disk{number}") for number in range(3)]
    for function in functions:
        function.update({vector: Message(DOORBELL, vector) for vector in range(2048)})
    assert len(vm.table) == GSIS - FIRST + len(PINS)
    assert set(events.names()) == {"msi-refused"}


def test_a_new_vm_is_told_anew(table: IrqRouting, vm: FakeVm) -> None:
    function = table.function("disk0")
    function.attach(0, 77)
    function.update({0: Message(DOORBELL, 1)})
    table.disconnect()
    table.disconnect()
    function.update({0: None})
    function.detach(77)
    function.attach(0, 78)
    assert vm.irqfds == {77: FIRST}, "which has gone with its VM"
    fresh = FakeVm()
    connect(table, fresh)
    assert fresh.irqfds == {}
    function.update({0: Message(DOORBELL, 1)})
    assert fresh.irqfds == {78: FIRST}
    assert fresh.replaced == 1


def test_without_a_vm_nothing_happens(events: Recorded) -> None:
    table = IrqRouting([], FIRST, events)
    function = table.function("disk0")
    function.attach(0, 77)
    function.update({0: Message(DOORBELL, 1)})
    function.detach(77)
    assert events.seen == []


def test_what_kvm_refuses_is_tried_again_and_others_are_not_kept_from_it(
    table: IrqRouting, vm: FakeVm
) -> None:
    function = table.function("disk0")
    for vector, fd in ((0, 70), (0, 71), (1, 72)):
        function.attach(vector, fd)
    vm.refused = {70}
    messages = {0: Message(DOORBELL, 1), 1: Message(DOORBELL, 2)}
    with pytest.raises(KernelError):
        function.update(messages)
    assert 72 in vm.irqfds
    vm.refused = set()
    function.update(messages)
    assert vm.irqfds == {70: FIRST, 71: FIRST, 72: FIRST + 1}
    vm.refused = {70}
    function.update({0: None})
    with pytest.raises(KernelError):
        function.update({0: messages[0]})
    function.update({0: None, 1: None})
    assert vm.irqfds == {}, "what KVM does not have is not taken from it"


def test_an_eventfd_that_kvm_refuses_is_not_attached(table: IrqRouting, vm: FakeVm) -> None:
    function = table.function("disk0")
    function.update({0: Message(DOORBELL, 1)})
    vm.refused = {70}
    with pytest.raises(KernelError):
        function.attach(0, 70)
    function.update({0: None})
    vm.refused = set()
    function.update({0: Message(DOORBELL, 1)})
    assert vm.irqfds == {}
