"""Which interface to VFIO is used and why; errors when neither can be."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from tests.vfio.pci_tree import GPU, Tree
from vmm.address_range import AddressRange
from vmm.cause import FailedCall
from vmm.errors import HostError, KernelError
from vmm.vfio import backend
from vmm.vfio import iommu as iommu_module
from vmm.vfio.backend import Backend, open_iommu, why_not_iommufd
from vmm.vfio.causes import CAUSES, causes
from vmm.vfio.device import open_device
from vmm.vfio.fd import VfioError, VfioFd
from vmm.vfio.function import HostFunction
from vmm.vfio.group import Container, _Group
from vmm.vfio.ioctls import ContainerIoctl, DeviceIoctl, GroupIoctl, IommufdIoctl
from vmm.vfio.iommu import Iommu
from vmm.vfio.iommufd import Iommufd


@pytest.fixture
def gpu(tree: Tree) -> HostFunction:
    path = tree.function(GPU, group=1, driver="vfio-pci")
    (path / "vfio-dev/vfio0").mkdir(parents=True)
    (tree.paths.dev / "vfio/1").touch()
    return HostFunction.find(GPU, tree.paths)


def with_iommufd(tree: Tree) -> None:
    (tree.paths.dev / "iommu").touch()
    (tree.paths.dev / "vfio/devices/vfio0").touch()


def test_iommufd_is_used_where_all_of_it_is_there(tree: Tree, gpu: HostFunction) -> None:
    with_iommufd(tree)
    assert why_not_iommufd(gpu) == ""


def test_without_a_device_file_the_group_is_used(gpu: HostFunction) -> None:
    assert "CONFIG_VFIO_DEVICE_CDEV" in why_not_iommufd(gpu)


def test_without_iommufd_the_group_is_used(tree: Tree, gpu: HostFunction) -> None:
    (tree.paths.dev / "vfio/devices/vfio0").touch()
    assert "iommufd" in why_not_iommufd(gpu)


@pytest.mark.parametrize("forbidden", ["iommu", "vfio/devices/vfio0"])
def test_where_only_the_group_was_given_to_us_it_is_used(
    tree: Tree, gpu: HostFunction, monkeypatch: pytest.MonkeyPatch, forbidden: str
) -> None:
    with_iommufd(tree)
    monkeypatch.setattr(backend, "_usable", lambda path: path != tree.paths.dev / forbidden)
    assert why_not_iommufd(gpu) == f"{tree.paths.dev / forbidden} is not ours to use"


def test_where_nothing_was_given_to_us_iommufd_may_say_so(
    tree: Tree, gpu: HostFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_iommufd(tree)
    monkeypatch.setattr(backend, "_usable", lambda path: False)
    assert why_not_iommufd(gpu) == ""


@pytest.mark.parametrize(
    ("chosen", "node"), [(Backend.GROUP, "vfio/vfio"), (Backend.IOMMUFD, "iommu")]
)
def test_a_missing_node_is_said_with_the_module(
    tree: Tree, gpu: HostFunction, chosen: Backend, node: str
) -> None:
    path = tree.paths.dev / node
    with pytest.raises(HostError, match=rf"cannot open {path}.*modprobe"):
        open_iommu(gpu, chosen)
    with pytest.raises(HostError, match=f"cannot open {path}"):
        open_device(GPU, backend=chosen, paths=tree.paths)


# --- locked memory ----------------------------------------------------------------------------


class Full(Iommu):
    """Accepts one mapping, and refuses the next."""

    def _attach(self, function: HostFunction) -> VfioFd:
        raise VfioError(function.bdf, GroupIoctl.VFIO_GROUP_SET_CONTAINER, errno.EPERM, {})

    def detach(self, device: VfioFd) -> None: ...

    def iova_ranges(self) -> list[AddressRange]:
        return []

    def _map(self, iova: int, host_address: int, size: int, *, writable: bool) -> None:
        if self.mapped:
            raise VfioError("iommu", IommufdIoctl.IOMMU_IOAS_MAP, errno.ENOMEM, {"iova": iova})

    def _unmap(self, iova: int, size: int) -> None: ...

    def _files(self) -> list[VfioFd]:
        return []

    def _close(self) -> None: ...


def limit(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(iommu_module, "_limit", lambda: size)


@pytest.mark.parametrize(("capabilities", "found"), [("0000000000004000", None), ("0", 8 << 20)])
def test_the_limit_is_that_of_who_cannot_lock_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capabilities: str, found: int | None
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    status = tmp_path / "status"
    status.write_text(f"Name:\tpyvmm\nCapEff:\t{capabilities}\n")
    assert iommu_module._limit(status) == found


def test_no_limit_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    status = tmp_path / "status"
    status.write_text("CapEff:\t0\n")
    assert iommu_module._limit(status) is None


def test_the_limit_on_locked_memory_is_said_with_the_number_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit(monkeypatch, 8 << 20)
    with Full() as iommu:
        iommu.dma_map(0, 0x1000, 6 << 20)
        with pytest.raises(HostError, match=r"needs 512 MiB.*limit is 8 MiB.*ulimit -l 524288"):
            iommu.dma_map(6 << 20, 0x1000, 506 << 20)
        assert iommu.mapped == 6 << 20


@pytest.mark.parametrize("size", [None, 1 << 30])
def test_no_memory_is_not_blamed_on_a_limit_that_is_not_reached(
    monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    limit(monkeypatch, size)
    with Full() as iommu:
        iommu.dma_map(0, 0x1000, 4096)
        with pytest.raises(VfioError, match="IOMMU_IOAS_MAP"):
            iommu.dma_map(4096, 0x1000, 4096)


def test_unmapping_covers_whole_mappings() -> None:
    with Full() as iommu:
        iommu.dma_map(0x4000, 0x1000, 0x2000)
        iommu.dma_unmap(0, 1 << 40)
        assert iommu.mapped == 0


# --- why --------------------------------------------------------------------------------------


def test_a_device_that_is_refused_names_its_groups_obstacles(tree: Tree, gpu: HostFunction) -> None:
    with Full() as iommu, pytest.raises(HostError, match="another device of the group"):
        iommu.attach(gpu)
    tree.function("0000:01:00.1", group=1, driver="snd_hda_intel")
    with Full() as iommu, pytest.raises(HostError, match=r"01:00\.1 \(snd_hda_intel\)"):
        iommu.attach(gpu)


def test_each_cause_is_of_an_ioctl_there_is() -> None:
    enums = (ContainerIoctl, GroupIoctl, DeviceIoctl, IommufdIoctl)
    names = {member.name for enum in enums for member in enum} | {"mmap"}
    assert {name for name, _ in CAUSES} <= names


def test_ioctls_of_one_number_have_causes_of_their_own() -> None:
    (unsafe,) = causes(FailedCall(ContainerIoctl.VFIO_SET_IOMMU.name, errno.EPERM))
    assert "allow_unsafe_interrupts" in unsafe.remedy
    (other,) = causes(FailedCall(GroupIoctl.VFIO_GROUP_SET_CONTAINER.name, errno.EPERM))
    assert "unsafe" not in other.remedy
    (closed,) = causes(FailedCall(DeviceIoctl.VFIO_DEVICE_RESET.name, errno.EBADF))
    assert closed.what == "the descriptor is closed"


def test_an_error_names_file_ioctl_arguments_and_cause() -> None:
    with VfioFd(-1, GPU) as fd, pytest.raises(KernelError) as error:
        fd.ioctl_struct(DeviceIoctl.VFIO_DEVICE_GET_REGION_INFO, "vfio_region_info", index=12)
    assert str(error.value) == (
        f"{GPU}: VFIO_DEVICE_GET_REGION_INFO(index=0xc): Bad file descriptor; "
        "the descriptor is closed: keep it open"
    )


# --- giving back ------------------------------------------------------------------------------


class Stubborn:
    """A KVM that fails to release a file."""

    def remove(self, _fd: int) -> None:
        raise KernelError("KVM_SET_DEVICE_ATTR", errno.ENOENT)


def opened(name: str) -> VfioFd:
    return VfioFd(os.open(os.devnull, os.O_RDWR), name)


def test_a_device_is_closed_whatever_kvm_says() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    iommufd = Iommufd.__new__(Iommufd)
    Iommu.__init__(iommufd, Stubborn())  # type: ignore[arg-type]
    iommufd._devices = [opened(GPU)]
    with pytest.raises(KernelError):
        iommufd.detach(iommufd._devices[0])
    assert iommufd._devices == []
    for undo in (lambda group: group.detach(group._groups[0].devices[0]), Container.close):
        group = Container.__new__(Container)
        Iommu.__init__(group, Stubborn())  # type: ignore[arg-type]
        group._fd = opened("container")
        group._groups = [_Group(opened("1"), 1, [opened(GPU)])]
        with pytest.raises(KernelError):
            undo(group)
        assert group._groups == []
        group.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
