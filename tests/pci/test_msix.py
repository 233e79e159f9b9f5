"""MSI-X as software sees it: table, masks, pending bits; and what the sink gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pci.pci_bus import MEMORY_ON, MSIX, Bus, Mapped, Sink, function
from vmm.pci.msix import VECTORS_MAX, Message, Msix

ENABLE, MASK_ALL = 1 << 15, 1 << 14
DOORBELL = 0x0809_0040


class Function:
    """A function with *vectors* vectors, its table at the BAR's beginning."""

    def __init__(self, vectors: int = 4) -> None:
        self.sink = Sink()
        self.msix = Msix(vectors, self.sink)
        made = function(Mapped(0, 0x1_0000))
        made.add_msix(self.msix, (0, 0), (0, 0x8000))
        self.bus = Bus(made)
        self.bus.command(MEMORY_ON)
        self.at = self.bus.capabilities()[MSIX] + 2

    def control(self, bits: int) -> None:
        self.bus.store(self.at, bits, 2)

    def set(self, vector: int, address: int, data: int, mask: int = 0) -> None:
        """Fill in an entry, as Linux does: masked until it is whole."""
        at = 16 * vector
        self.msix.write(at + 12, 4, 1)
        self.msix.write(at, 4, address & 0xFFFF_FFFF)
        self.msix.write(at + 4, 4, address >> 32)
        self.msix.write(at + 8, 4, data)
        self.msix.write(at + 12, 4, mask)


def test_all_vectors_are_masked_at_first() -> None:
    made = Function()
    for vector in range(4):
        assert [made.msix.read(16 * vector + at, 4) for at in (0, 4, 8, 12)] == [0, 0, 0, 1]
    made.control(ENABLE)
    assert made.sink.updates == []


def test_a_vector_sends_what_its_entry_says_once_msix_is_on() -> None:
    made = Function()
    made.set(1, DOORBELL, 0x21)
    assert made.sink.updates == []
    made.control(ENABLE)
    assert made.sink.updates == [{1: Message(DOORBELL, 0x21)}]
    assert made.msix.enabled
    made.control(0)
    assert made.sink.messages == {1: None}
    assert not made.msix.enabled


def test_the_mask_of_all_changes_all_at_once() -> None:
    made = Function()
    made.control(ENABLE | MASK_ALL)
    for vector in range(3):
        made.set(vector, DOORBELL, vector)
    assert made.sink.updates == []
    made.control(ENABLE)
    assert made.sink.updates == [{n: Message(DOORBELL, n) for n in range(3)}]
    made.control(ENABLE | MASK_ALL)
    assert made.sink.updates[1:] == [dict.fromkeys(range(3))]


def test_a_vector_that_is_masked_sends_nothing() -> None:
    made = Function()
    made.control(ENABLE)
    made.set(2, DOORBELL, 7)
    made.msix.write(44, 4, 1)
    made.msix.write(44, 4, 1)
    made.msix.write(44, 4, 0)
    message = Message(DOORBELL, 7)
    assert made.sink.updates == [{2: message}, {2: None}, {2: message}]


def test_an_address_may_have_64_bits_and_be_written_at_once() -> None:
    made = Function()
    made.control(ENABLE)
    made.msix.write(0, 8, 0x1_2345_6789_ABC0)
    made.msix.write(8, 8, 0x55)
    assert made.sink.messages == {0: Message(0x1_2345_6789_ABC0, 0x55)}


def test_an_entry_changed_while_it_is_not_masked_counts_at_once() -> None:
    made = Function()
    made.control(ENABLE)
    made.set(0, DOORBELL, 1)
    made.msix.write(8, 4, 2)
    assert made.sink.messages == {0: Message(DOORBELL, 2)}


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (2, 4), (4, 8), (64, 4), (60, 8)])
def test_what_is_no_access_to_the_table_is_dropped(offset: int, size: int) -> None:
    made = Function()
    before = [made.msix.read(at, 4) for at in range(0, 64, 4)]
    made.msix.write(offset, size, 0)
    made.msix.write(offset, size, (1 << 8 * size) - 1)
    assert [made.msix.read(at, 4) for at in range(0, 64, 4)] == before


def test_reserved_bits_of_vector_control_read_as_zero() -> None:
    made = Function()
    made.msix.write(12, 4, 0xFFFF_FFFE)
    assert made.msix.read(12, 4) == 0
    made.msix.write(12, 4, 0xFFFF_FFFF)
    assert made.msix.read(12, 4) == 1


def test_pending_bits_are_those_of_masked_vectors() -> None:
    made = Function(70)
    made.sink.waiting = {0, 3, 65}
    assert made.msix.pba_size == 16
    assert made.msix.pba.read(0, 8) == 0b1001
    assert made.msix.pba.read(0, 1) == 0b1001
    assert made.msix.pba.read(8, 8) == 0b10
    assert made.msix.pba.read(8, 4) == 0b10
    made.msix.pba.write(0, 8, 0)
    assert made.msix.pba.read(0, 8) == 0b1001, "read-only"
    made.control(ENABLE)
    made.set(3, DOORBELL, 0)
    assert made.msix.pba.read(0, 8) == 0b1, "what is not masked has been sent"


def test_a_reset_masks_everything_and_turns_it_off() -> None:
    made = Function()
    made.control(ENABLE)
    made.set(0, DOORBELL, 1)
    made.bus.host.reset()
    assert made.sink.messages == {0: None}
    assert made.msix.read(0, 4) == 0
    assert made.msix.read(12, 4) == 1
    assert made.bus.load(made.at, 2) == 3
    assert not made.msix.enabled


def test_the_size_of_the_table_is_not_the_guests_to_write() -> None:
    made = Function()
    made.control(0xFFFF)
    assert made.bus.load(made.at, 2) == ENABLE | MASK_ALL | 3


@pytest.mark.parametrize("vectors", [0, VECTORS_MAX + 1])
def test_a_table_has_a_size_that_can_be_said(vectors: int) -> None:
    with pytest.raises(ValueError, match="cannot have"):
        Msix(vectors, Sink())


@given(
    st.lists(
        st.tuples(
            st.integers(0, 80),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, (1 << 64) - 1),
            st.sampled_from([0, 0, ENABLE, ENABLE, ENABLE | MASK_ALL, MASK_ALL, 0xFFFF]),
        ),
        max_size=40,
    )
)
def test_the_sink_always_knows_what_the_table_says(
    steps: list[tuple[int, int, int, int]],
) -> None:
    made = Function()
    for offset, size, value, control in steps:
        made.msix.write(offset, size, value & (1 << 8 * size) - 1)
        made.control(control)
        sends = bool(control & ENABLE) and not control & MASK_ALL
        for vector in range(4):
            at = 16 * vector
            masked = made.msix.read(at + 12, 4)
            assert masked in (0, 1)
            wanted = Message(made.msix.read(at, 8), made.msix.read(at + 8, 4))
            expected = wanted if sends and not masked else None
            assert made.sink.messages.get(vector) == expected == made.msix.message(vector)
