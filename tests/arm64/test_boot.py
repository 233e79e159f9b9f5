"""Placement, against the rules of Linux's Documentation/arch/arm64/booting.rst."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vmm.address_range import AddressRange
from vmm.arm64 import boot
from vmm.arm64.boot import BLOCK, GIB, MIB, BootPlan
from vmm.arm64.image import Kernel
from vmm.errors import UserError

RAM_BASE = 0x4000_0000


def kernel_of(image_size: int, text_offset: int = 0) -> Kernel:
    return Kernel("vmlinuz", "Image", ("Image",), memoryview(b""), text_offset, image_size)


kernels = st.builds(
    kernel_of, st.integers(64, 128 * MIB), st.sampled_from([0, 0x80000]) | st.integers(0, BLOCK)
)
rams = st.builds(
    AddressRange,
    st.integers(0, 1 << 28).map(lambda page: page << 12),
    st.integers(1, 1 << 16).map(lambda mib: mib * MIB),
)
initrd_sizes = st.just(0) | st.integers(1, 512 * MIB) | st.integers(1, 64 * GIB)


@given(rams, kernels, initrd_sizes, st.integers(1, boot.DTB_LIMIT))
def test_a_plan_follows_the_boot_protocol(
    ram: AddressRange, kernel: Kernel, initrd_size: int, dtb_size: int
) -> None:
    plan = planned(ram, kernel, initrd_size, dtb_size)
    parts = [part for part in (plan.kernel, plan.dtb, plan.initrd) if part]

    assert plan.kernel is not None
    # The image starts text_offset bytes from a 2 MiB boundary; image_size bytes are its own.
    assert (plan.kernel.base - kernel.text_offset) % BLOCK == 0
    assert plan.kernel.size >= kernel.image_size
    # The device tree is 8-byte aligned, within one 2 MiB block that the kernel is not in.
    assert plan.dtb.base % 8 == 0
    assert plan.dtb.size >= dtb_size
    assert plan.dtb.base // BLOCK == (plan.dtb.end - 1) // BLOCK
    assert plan.kernel.end <= plan.dtb.base // BLOCK * BLOCK
    # Everything is in RAM and nothing overlaps.
    assert all(ram.base <= part.base and part.end <= ram.end for part in parts)
    ordered = sorted(parts, key=lambda part: part.base)
    assert all(low.end <= high.base for low, high in pairwise(ordered))
    if initrd_size:
        assert plan.initrd
        assert plan.initrd.size == initrd_size
        assert plan.initrd.base % (64 << 10) == 0
        # A 1 GiB-aligned window of up to 32 GiB covers kernel and initrd.
        window = min(part.base for part in (plan.kernel, plan.initrd)) // GIB * GIB
        assert max(plan.kernel.end, plan.initrd.end) <= window + 32 * GIB
    else:
        assert plan.initrd is None


def planned(ram: AddressRange, kernel: Kernel, initrd_size: int, dtb_size: int) -> BootPlan:
    try:
        return boot.plan(ram, kernel, initrd_size, dtb_size=dtb_size)
    except UserError:
        assume(False)  # noqa: FBT003  (hypothesis's way to say: another example)
        raise


@given(rams, kernels, initrd_sizes)
def test_what_has_room_to_spare_is_placed(
    ram: AddressRange, kernel: Kernel, initrd_size: int
) -> None:
    slack = 4 * BLOCK + kernel.text_offset
    assume(ram.size > kernel.image_size + initrd_size + slack)
    assume(kernel.image_size + initrd_size + slack < 31 * GIB)
    boot.plan(ram, kernel, initrd_size)


def test_the_boot_cpu_starts_in_the_kernel_with_the_device_tree_in_x0() -> None:
    plan = boot.plan(AddressRange(RAM_BASE, 64 * MIB), kernel_of(16 * MIB, 0x80000))
    assert plan.registers == {
        "x0": plan.dtb.base,
        "x1": 0,
        "x2": 0,
        "x3": 0,
        "pc": RAM_BASE + 0x80000,
        "pstate": 0x3C5,  # EL1h, DAIF
    }


def test_a_kernel_too_big_is_named_with_a_memory_size_that_does() -> None:
    with pytest.raises(UserError) as caught:
        boot.plan(AddressRange(RAM_BASE, 32 * MIB), kernel_of(40 * MIB))
    assert str(caught.value) == (
        "vmlinuz: the kernel (40 MiB) does not fit in 32 MiB of RAM; use --memory 128M"
    )
    boot.plan(AddressRange(RAM_BASE, 128 * MIB), kernel_of(40 * MIB))


def test_an_initrd_too_big_is_named_with_a_memory_size_that_does() -> None:
    ram = AddressRange(RAM_BASE, 256 * MIB)
    with pytest.raises(UserError) as caught:
        boot.plan(ram, kernel_of(40 * MIB), 400 * MIB - 1, initrd_name="big.cpio")
    assert str(caught.value) == (
        "big.cpio: the initrd (400 MiB) does not fit in 256 MiB of RAM; use --memory 1024M"
    )
    boot.plan(AddressRange(RAM_BASE, 1024 * MIB), kernel_of(40 * MIB), 400 * MIB - 1)


def test_an_initrd_out_of_the_kernels_window_is_refused() -> None:
    with pytest.raises(UserError, match="reaches beyond the 32 GiB that Linux maps"):
        boot.plan(AddressRange(RAM_BASE, 64 * GIB), kernel_of(40 * MIB), 33 * GIB)


def test_no_device_tree_exceeds_what_linux_maps() -> None:
    with pytest.raises(ValueError, match="Linux reads up to 2097152"):
        boot.plan(AddressRange(0, GIB), kernel_of(64), dtb_size=2 * MIB + 1)
