"""Bind devices to VFIO drivers, and restore their own."""

from __future__ import annotations

import json

import pytest

from tests.vfio.pci_tree import DISK, GPU, Tree
from vmm.errors import HostError, UserError
from vmm.vfio import drivers
from vmm.vfio.binding import Binding, bind, borrowed, bound, unbind
from vmm.vfio.function import HostFunction

ALIASES = """# Aliases extracted from modules themselves.
alias pci:v000010DEd*sv*sd*bc03sc*i* nouveau
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
alias vfio_pci:v000010DEd00002342sv*sd*bc*sc*i* nvgrace_gpu_vfio_pci
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci
"""


@pytest.fixture
def gpu(tree: Tree) -> HostFunction:
    tree.driver("vfio-pci")
    tree.function(GPU, group=1, driver="nouveau")
    return HostFunction.find(GPU, tree.paths)


def state(function: HostFunction) -> tuple[str | None, str]:
    return function.driver, function.driver_override


def test_unbind_undoes_what_bind_did_again_and_again(tree: Tree, gpu: HostFunction) -> None:
    for _ in range(20):
        assert bind(GPU, paths=tree.paths) == "vfio-pci"
        assert state(gpu) == ("vfio-pci", "vfio-pci")
        assert bound(tree.paths) == [GPU]
        assert unbind(GPU, tree.paths) == "nouveau"
        assert state(gpu) == ("nouveau", "")
        assert bound(tree.paths) == []
    assert [path.name for path in (tree.paths.run / "vfio").iterdir()] == ["lock"]


def test_an_override_that_was_there_comes_back(tree: Tree, gpu: HostFunction) -> None:
    (gpu.path / "driver_override").write_text("nouveau\n")
    bind(GPU, paths=tree.paths)
    unbind(GPU, tree.paths)
    assert state(gpu) == ("nouveau", "nouveau")


def test_a_device_without_a_driver_has_none_again(tree: Tree, gpu: HostFunction) -> None:
    (gpu.path / "driver").unlink()
    bind(GPU, paths=tree.paths)
    assert unbind(GPU, tree.paths) is None
    assert state(gpu) == (None, "")


def test_a_device_that_has_the_driver_already_is_left_alone(tree: Tree, gpu: HostFunction) -> None:
    tree.write(gpu.path / "driver/unbind", GPU)
    tree.write(tree.paths.drivers / "vfio-pci/bind", GPU)
    tree.written.clear()
    assert bind(GPU, paths=tree.paths) == "vfio-pci"
    assert tree.written == []
    with pytest.raises(UserError, match=r"not bound by pyvmm; its driver is vfio-pci"):
        unbind(GPU, tree.paths)


def test_a_refused_bind_leaves_all_as_it_was(tree: Tree, gpu: HostFunction) -> None:
    tree.refuses.add("vfio-pci")
    with pytest.raises(HostError):
        bind(GPU, paths=tree.paths)
    assert state(gpu) == ("nouveau", "")
    assert bound(tree.paths) == []


def test_a_bind_that_was_cut_short_can_be_undone(tree: Tree, gpu: HostFunction) -> None:
    Binding(GPU, "nouveau", "").save(tree.paths)
    tree.write(gpu.path / "driver_override", "vfio-pci")
    tree.write(gpu.path / "driver/unbind", GPU)  # and then the power of pyvmm failed
    assert unbind(GPU, tree.paths) == "nouveau"
    assert state(gpu) == ("nouveau", "")


def test_changing_the_vfio_driver_keeps_what_was_first(tree: Tree, gpu: HostFunction) -> None:
    tree.driver("nvgrace_gpu_vfio_pci")
    bind(GPU, paths=tree.paths)
    assert bind(GPU, "nvgrace_gpu_vfio_pci", tree.paths) == "nvgrace_gpu_vfio_pci"
    assert unbind(GPU, tree.paths) == "nouveau"


def test_a_refused_change_keeps_the_driver_and_the_record(tree: Tree, gpu: HostFunction) -> None:
    tree.driver("nvgrace_gpu_vfio_pci")
    tree.refuses.add("nvgrace_gpu_vfio_pci")
    bind(GPU, paths=tree.paths)
    with pytest.raises(HostError):
        bind(GPU, "nvgrace_gpu_vfio_pci", tree.paths)
    assert state(gpu) == ("vfio-pci", "vfio-pci")
    assert unbind(GPU, tree.paths) == "nouveau"


def test_a_device_that_left_is_forgotten(tree: Tree, gpu: HostFunction) -> None:
    bind(GPU, paths=tree.paths)
    gpu.path.rename(tree.root / "gone")
    assert unbind(GPU, tree.paths) == "nouveau"
    assert bound(tree.paths) == []


def test_a_borrowed_device_is_given_back_whatever_happens(tree: Tree, gpu: HostFunction) -> None:
    def use() -> None:
        with borrowed(GPU, paths=tree.paths) as driver:
            assert driver == gpu.driver == "vfio-pci"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        use()
    assert state(gpu) == ("nouveau", "")


def test_borrowing_leaves_a_device_alone_that_has_a_vfio_driver(
    tree: Tree, gpu: HostFunction
) -> None:
    bind(GPU, paths=tree.paths)
    with borrowed(GPU, paths=tree.paths) as driver:
        assert driver == "vfio-pci"
    assert gpu.driver == "vfio-pci"


def test_a_device_in_use_is_not_taken_away(tree: Tree, gpu: HostFunction) -> None:
    bind(GPU, paths=tree.paths)
    tree.process(8, "qemu", tree.paths.dev / "vfio/1")
    with pytest.raises(UserError, match=r"in use by process 8 \(qemu\)"):
        unbind(GPU, tree.paths)
    assert bound(tree.paths) == [GPU]


def test_the_drivers_former_owner_may_be_gone(tree: Tree, gpu: HostFunction) -> None:
    bind(GPU, paths=tree.paths)
    (tree.paths.drivers / "nouveau").rmdir()
    with pytest.raises(HostError, match=r"nouveau is no longer loaded; modprobe nouveau"):
        unbind(GPU, tree.paths)
    assert bound(tree.paths) == [GPU], "it can be tried again"


def test_a_record_that_cannot_be_read_is_said(tree: Tree, gpu: HostFunction) -> None:
    record = tree.paths.run / "vfio" / f"{GPU}.json"
    record.parent.mkdir(parents=True)
    for text in ("", "[]", json.dumps({"bdf": GPU})):
        record.write_text(text)
        with pytest.raises(HostError, match="cannot be read"):
            unbind(GPU, tree.paths)


def test_no_iommu_no_binding(tree: Tree) -> None:
    tree.driver("vfio-pci")
    tree.function(DISK, driver="nvme")
    with pytest.raises(HostError, match="behind no IOMMU"):
        bind(DISK, paths=tree.paths)
    assert tree.written == []


def test_a_function_that_never_had_a_driver_gets_its_group_when_it_is_probed(tree: Tree) -> None:
    """Linux 6.12 on arm64 makes the group as the first driver is bound (of_dma_configure)."""
    tree.driver("vfio-pci")
    tree.iommu()
    tree.function(DISK)
    tree.probed[DISK] = 7
    assert bind(DISK, paths=tree.paths) == "vfio-pci"
    assert HostFunction(DISK, tree.paths).iommu_group == 7


def test_a_function_that_gets_no_group_then_is_put_back(tree: Tree) -> None:
    tree.driver("vfio-pci")
    tree.iommu()
    tree.function(DISK)
    with pytest.raises(HostError, match="behind no IOMMU"):
        bind(DISK, paths=tree.paths)
    function = HostFunction(DISK, tree.paths)
    assert (function.driver, function.driver_override) == (None, "")
    assert not (tree.paths.run / "vfio" / f"{DISK}.json").exists()


def test_a_host_without_an_iommu_is_not_touched(tree: Tree) -> None:
    tree.driver("vfio-pci")
    tree.function(DISK)
    with pytest.raises(HostError, match="behind no IOMMU"):
        bind(DISK, paths=tree.paths)
    assert tree.written == []


def test_only_vfio_drivers_are_bound(tree: Tree, gpu: HostFunction) -> None:
    tree.driver("nvidia")
    with pytest.raises(UserError, match=r"nvidia is not a VFIO driver.*vfio-pci"):
        bind(GPU, "nvidia", tree.paths)


def test_a_missing_driver_is_said_with_modprobes_words(tree: Tree, gpu: HostFunction) -> None:
    with pytest.raises(HostError, match=r"no driver vfio_none: modprobe.*CONFIG_VFIO_PCI"):
        bind(GPU, "vfio_none", tree.paths)


# --- which driver -----------------------------------------------------------------------------


def test_the_variant_driver_made_for_the_device_is_wanted(tree: Tree, gpu: HostFunction) -> None:
    tree.modules(ALIASES)
    assert drivers.wanted_module(gpu) == "nvgrace_gpu_vfio_pci"
    tree.function(DISK, group=2, ids=(0x1B36, 0x10))
    assert drivers.wanted_module(HostFunction.find(DISK, tree.paths)) == "vfio_pci"


def test_variants_built_into_the_kernel_count(tree: Tree, gpu: HostFunction) -> None:
    builtin = (
        b"nvgrace_gpu_vfio_pci.license=GPL\0"
        b"nvgrace_gpu_vfio_pci.alias=vfio_pci:v000010DEd00002342sv*sd*bc*sc*i*\0"
    )
    tree.modules("alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n", builtin)
    assert drivers.wanted_module(gpu) == "nvgrace_gpu_vfio_pci"


def test_without_aliases_vfio_pci_is_wanted(gpu: HostFunction) -> None:
    assert drivers.wanted_module(gpu) == "vfio-pci"


def test_a_modules_driver_may_have_another_name(tree: Tree) -> None:
    tree.driver("vfio-pci")
    (tree.paths.sys / "module/vfio_pci/drivers/pci:vfio-pci").mkdir(parents=True)
    assert drivers.ready("vfio_pci", tree.paths) == "vfio-pci"
