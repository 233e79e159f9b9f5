"""PCI functions as sysfs shows them."""

from __future__ import annotations

import pytest

from tests.vfio.pci_tree import AUDIO, DISK, GPU, Tree
from vmm.errors import HostError, UserError
from vmm.vfio.assignability import check_assignable, check_unused, obstacle, users
from vmm.vfio.function import HostFunction, SysfsBar

RESOURCE = """0x0000000010000000 0x0000000010ffffff 0x0000000000040200
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000008000000000 0x0000009fffffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000001000 0x000000000000101f 0x0000000000040101
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000011000000 0x000000001107ffff 0x0000000000046200"""


def test_a_missing_device_is_said(tree: Tree) -> None:
    with pytest.raises(UserError, match=r"no PCI device 0000:09:00\.0; `pyvmm vfio list`"):
        HostFunction.find("09:00.0", tree.paths)


def test_all_functions_are_found_by_address(tree: Tree) -> None:
    for bdf in (DISK, GPU):
        tree.function(bdf)
    assert [function.bdf for function in HostFunction.all(tree.paths)] == [GPU, DISK]


def test_a_host_without_pci_has_none(tree: Tree) -> None:
    tree.paths.devices.rmdir()
    assert HostFunction.all(tree.paths) == []


def test_what_a_function_is(tree: Tree) -> None:
    tree.function(GPU, group=7, driver="nouveau", resource=RESOURCE, numa_node=1)
    gpu = HostFunction.find("01:00.0", tree.paths)
    assert (gpu.vendor, gpu.device, gpu.class_code) == (0x10DE, 0x2342, 0x030200)
    assert (gpu.driver, gpu.driver_override, gpu.iommu_group) == ("nouveau", "", 7)
    assert gpu.numa_node == 1
    assert gpu.vfio_name is None
    assert not gpu.driven_by_vfio
    assert gpu.bars == [
        SysfsBar(0, 0x10000000, 16 << 20, 0x40200),
        SysfsBar(2, 0x80_0000_0000, 128 << 30, 0x14220C),
        SysfsBar(4, 0x1000, 32, 0x40101),
        SysfsBar(6, 0x11000000, 512 << 10, 0x46200),
    ]
    assert [bar.kind for bar in gpu.bars[:3]] == [
        "32-bit, non-prefetchable",
        "64-bit, prefetchable",
        "I/O ports",
    ]
    assert [bar.is_memory for bar in gpu.bars] == [True, True, False, True]


def test_what_a_function_has_not(tree: Tree) -> None:
    tree.function(DISK)
    disk = HostFunction.find(DISK, tree.paths)
    assert (disk.driver, disk.iommu_group, disk.numa_node) == (None, None, None)
    assert disk.group_members == []
    assert disk.bars == []


def test_an_attribute_the_kernel_lacks_is_empty_but_a_device_that_left_is_an_error(
    tree: Tree,
) -> None:
    path = tree.function(DISK)
    disk = HostFunction.find(DISK, tree.paths)
    (path / "driver_override").unlink()
    assert disk.driver_override == ""
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    with pytest.raises(UserError, match="has gone"):
        _ = disk.vendor


def test_the_vfio_device_is_found(tree: Tree) -> None:
    path = tree.function(GPU, group=7, driver="some_variant")
    (path / "vfio-dev/vfio3").mkdir(parents=True)
    gpu = HostFunction.find(GPU, tree.paths)
    assert gpu.vfio_name == "vfio3"
    assert gpu.driven_by_vfio


# --- what is in the way -----------------------------------------------------------------------


def test_a_device_behind_no_iommu_is_refused(tree: Tree) -> None:
    tree.function(GPU, driver="vfio-pci")
    with pytest.raises(HostError, match=r"behind no IOMMU.*switch the IOMMU on"):
        check_assignable(HostFunction.find(GPU, tree.paths))


@pytest.mark.parametrize(("driver", "what"), [("nouveau", "driver nouveau"), (None, "no driver")])
def test_a_device_of_the_hosts_is_refused(tree: Tree, driver: str | None, what: str) -> None:
    tree.function(GPU, group=1, driver=driver)
    with pytest.raises(UserError, match=rf"{what}.*`pyvmm vfio bind {GPU}`"):
        check_assignable(HostFunction.find(GPU, tree.paths))


def test_the_group_is_viable_if_the_others_have_vfio_drivers_or_none(tree: Tree) -> None:
    tree.function(GPU, group=1, driver="vfio-pci")
    tree.function(AUDIO, group=1, driver="vfio-pci")
    tree.function("0000:01:00.2", group=1)
    tree.function("0000:01:00.3", group=1, driver="pcieport")
    gpu = HostFunction.find(GPU, tree.paths)
    assert len(gpu.group_members) == 3
    assert gpu.group_obstacles == []
    assert obstacle(gpu) is None


def test_devices_that_keep_the_group_from_us_are_named_with_their_drivers(tree: Tree) -> None:
    tree.function(GPU, group=1, driver="vfio-pci")
    tree.function(AUDIO, group=1, driver="snd_hda_intel")
    found = obstacle(HostFunction.find(GPU, tree.paths))
    assert found is not None
    assert f"{AUDIO} (snd_hda_intel)" in str(found)
    assert "group 1" in str(found)


def test_who_uses_a_device_is_named(tree: Tree) -> None:
    path = tree.function(GPU, group=1, driver="vfio-pci")
    (path / "vfio-dev/vfio0").mkdir(parents=True)
    gpu = HostFunction.find(GPU, tree.paths)
    tree.process(7, "sh", tree.root / "other")
    assert users(gpu) == []
    check_unused(gpu)
    tree.process(8, "qemu", tree.root / "other", tree.paths.dev / "vfio/1")
    tree.process(9, "pyvmm", tree.paths.dev / "vfio/devices/vfio0")
    (tree.paths.proc / "10").mkdir()  # ends while we look
    assert users(gpu) == ["process 8 (qemu)", "process 9 (pyvmm)"]
    with pytest.raises(UserError, match=r"in use by process 8 \(qemu\), process 9"):
        check_unused(gpu)
    assert "in use by process 8" in str(obstacle(gpu))
