"""The emulated GPU: its place in the device tree, and what makes it ready."""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING

import pytest

from vmm import fdt
from vmm.lab.host import gh200
from vmm.lab.inside import gpu

if TYPE_CHECKING:
    from pathlib import Path


def test_the_gpu_is_a_child_of_the_pci_bridge_at_the_slot_qemu_gives_it(tmp_path: Path) -> None:
    tree = fdt.Node(
        "",
        {"compatible": "linux,dummy-virt"},
        [fdt.Node("pl011@9000000"), fdt.Node("pcie@10000000", {"phandle": 7})],
    )
    path = tmp_path / "virt.dtb"
    path.write_bytes(fdt.dumps(tree))
    gh200.add_gpu(path)
    node = fdt.loads(path.read_bytes()).find("/pcie@10000000/gpu@10,0")
    assert fdt.cells(node.properties["reg"]) == (0x8000, 0, 0, 0, 0)
    assert gh200.DEVICES == ("bochs-display,addr=0x10,romfile=",)
    assert fdt.cells(node.properties["nvidia,gpu-mem-base-pa"], 2) == (0xC0000000,)
    assert fdt.cells(node.properties["nvidia,gpu-mem-size"], 2) == (0x60000000,)


def test_the_gpus_memory_is_ram_that_the_hosts_kernel_leaves_alone() -> None:
    assert f"mem={gh200.HOST_MEMORY >> 20}M" == gh200.COMMAND_LINE
    assert gh200.HOST_MEMORY + gh200.GPU_MEMORY <= gh200.MEMORY


def test_profiles_differ_in_cpu_and_kernel_only() -> None:
    profiles = {profile.name: profile for profile in gh200.profiles()}
    names = ("gh200", "rfc", "posted", "percap", "vendor", "legacy-gh200")
    assert list(profiles) == [f"{name}{suffix}" for name in names for suffix in ("", "-nofwb")]
    assert {profile.machine for profile in profiles.values()} == {("iommu=smmuv3",)}
    assert len({(profile.cpu, profile.kernel) for profile in profiles.values()}) == 12


@pytest.fixture
def pci(tmp_path: Path) -> Path:
    """Make a sysfs with a network card and the GPU."""
    for name, ids in (("0000:00:01.0", ("0x1af4", "0x1041")), ("0000:00:10.0", gpu.ID)):
        device = tmp_path / "devices" / name
        device.mkdir(parents=True)
        for file, text in zip(("vendor", "device"), ids, strict=True):
            (device / file).write_text(f"{text}\n")
        (device / "enable").write_text("0\n")
        (device / "resource0").write_bytes(bytes(1 << 20))
    driver = tmp_path / "drivers" / gpu.DRIVER
    driver.mkdir(parents=True)
    return tmp_path


def test_link_and_memory_are_reported_ready_then_the_driver_is_bound(pci: Path) -> None:
    gpu.main(pci)
    device = pci / "devices/0000:00:10.0"
    bar = (device / "resource0").read_bytes()
    assert bar[0x1498:0x149C] == bar[0x200BC:0x200C0] == b"\xff\0\0\0"
    assert bar.count(0xFF) == 2
    assert (device / "enable").read_text() == "0"
    assert (device / "driver_override").read_text() == "nvgrace_gpu_vfio_pci"
    assert (pci / "drivers/nvgrace_gpu_vfio_pci/bind").read_text() == "0000:00:10.0"


def test_a_gpu_that_has_its_driver_is_left_alone(pci: Path) -> None:
    (pci / "devices/0000:00:10.0/driver").mkdir()
    gpu.main(pci)
    assert not (pci / "devices/0000:00:10.0/driver_override").exists()


def test_a_kernel_without_the_driver_is_said_to_be_one(pci: Path) -> None:
    (pci / "drivers" / gpu.DRIVER).rmdir()
    with pytest.raises(LookupError, match="kernel has no nvgrace_gpu_vfio_pci"):
        gpu.main(pci)


def test_a_host_without_the_gpu_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    with pytest.raises(LookupError, match="no emulated GPU"):
        gpu.main(tmp_path)


def test_the_hosts_setup_is_the_text_of_that_module_and_ends_with_one_line() -> None:
    command, *_ = gh200.SETUP
    assert command.startswith("python3 -I -c ")
    with pytest.raises(SystemExit, match=r"^the GPU can't be set up: "):
        runpy.run_path(gpu.__file__, run_name="__main__")
