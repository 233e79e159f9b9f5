"""VFIO for real: QEMU's devices behind an emulated SMMU, through both of the kernel's interfaces.

Debian's stock kernel has groups only; the kernel built for the emulated GPU has iommufd as well.
What runs in the hosts is in vfio_device.py (QEMU's edu), vfio_binding.py (an NVMe disk) and
vfio_gpu.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import Completed

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

PROGRAMS = Path(__file__).parent / "inside"
EDU, DISK, DISPLAY = "0000:00:10.0", "0000:00:11.0", "0000:00:12.0"
SHARED, NEIGHBOUR = "0000:00:13.0", "0000:00:13.1"
GPU, SECOND_EDU = "0000:00:10.0", "0000:00:12.0"

PROFILES = {"stock": "passthrough", "built": "gh200-passthrough", "unsafe": "unsafe"}
"""The lab's profile for each kind of host."""

stock = pytest.mark.profile(PROFILES["stock"])
built = pytest.mark.profile(PROFILES["built"])
on_stock = pytest.param("stock", id="stock-group", marks=stock)
on_built = [
    pytest.param(f"built-{backend}", id=f"built-{backend}", marks=[built, pytest.mark.kernels])
    for backend in ("iommufd", "group")
]
everywhere = pytest.mark.parametrize("which", [on_stock, *on_built])

_lab_host: list[Callable[[str], Host]] = []


@pytest.fixture(autouse=True)
def _host(lab_host: Callable[[str], Host]) -> None:
    """Make the fixture available to the functions below, whose results are cached."""
    _lab_host[:] = [lab_host]


def host(which: str) -> Host:
    """Return the host for *which*: "stock", "unsafe", or "built" with a backend."""
    return _lab_host[0](PROFILES[which.partition("-")[0]])


def run(which: str, *argv: str, stdin: bytes = b"") -> Completed:
    return host(which).run(argv, stdin=stdin, timeout=900)


def program(which: str, name: str, *arguments: str) -> Any:
    """Run one of the programs in inside/; return the JSON that it prints."""
    done = run(which, "python3", "-", *arguments, stdin=(PROGRAMS / name).read_bytes())
    assert done.status == 0, done.stderr.decode()
    return json.loads(done.stdout)


def pyvmm(which: str, *arguments: str) -> str:
    done = run(which, "pyvmm", "vfio", *arguments)
    return f"{done.status} {(done.stderr or done.stdout).decode().strip()}"


def backend(which: str) -> str:
    return "iommufd" if which.endswith("iommufd") else "group"


# --- a device ---------------------------------------------------------------------------------


@cache
def device(which: str) -> Any:
    stock = which == "stock"
    edu, other = (EDU, DISPLAY) if stock else (SECOND_EDU, GPU)
    for bdf in (edu, DISPLAY) if stock else (edu,):
        assert pyvmm(which, "bind", bdf).startswith("0 ")
    try:
        return program(which, "vfio_device.py", edu, backend(which), other)
    finally:
        for bdf in (edu, DISPLAY) if stock else (edu,):
            pyvmm(which, "unbind", bdf)


@everywhere
def test_a_devices_registers_work_by_system_call_and_mapped(which: str) -> None:
    found = device(which)
    assert found["driver"] == "vfio-pci"
    assert found["regions"] == {"BAR0": 1 << 20, "config": 256}
    assert found["registers"] == {
        "identification": 0x010000ED,
        "liveness": ~0x12345678 & 0xFFFFFFFF,
        "factorial": 3628800,
        "aligned": True,
    }


@everywhere
def test_the_interface_is_said_in_an_event(which: str) -> None:
    (event,) = device(which)["events"]
    assert event["event"] == "vfio-backend"
    assert event["backend"] == backend(which)
    assert event["because"]


@everywhere
def test_a_device_does_dma_where_memory_is_mapped(which: str) -> None:
    found = device(which)["dma"]
    assert found["mapped"]
    assert found["copied"]
    assert found["unmapped"]
    assert "mapped already" in found["again"]
    assert "multiple of the IOMMU's page" in found["unaligned"]
    assert "nothing is mapped there" in found["unmapped again"]


@everywhere
def test_the_messages_doorbell_is_not_for_dma(which: str) -> None:
    """Source: MSI_IOVA_BASE in the SMMUv3 driver."""
    for start, last in device(which)["dma"]["ranges"]:
        assert last < 0x8000000 or start > 0x8000000


@pytest.mark.kernels
@built
def test_iommufd_refuses_device_memory_for_dma() -> None:
    assert "cannot be pinned" in device("built-iommufd")["dma"]["device memory"]


@everywhere
def test_interrupts_arrive_by_message_and_by_pin(which: str) -> None:
    found = device(which)["interrupts"]
    assert (found["INTX"], found["MSI"], found["MSIX"]) == (1, 1, 0)
    assert found["message"]
    assert found["pin"]
    assert found["masked until unmasked"], "INTx is level-triggered, and masks itself"
    assert found["level still there"]
    assert found["level gone"]
    assert "more vectors than it has" in found["too many"]


@everywhere
def test_what_cannot_be_is_refused_in_one_line_that_names_the_region(which: str) -> None:
    found = device(which)["refusals"]
    assert "has no region 3; it has 0 (BAR0), 7 (config)" in found["no region"]
    assert "can only be read and written" in found["config"]
    assert "not a multiple of this host's page" in found["unaligned"]
    assert "what can be mapped of it is [0x0, 0x100000)" in found["past"]
    assert "0 bytes makes no sense" in found["nothing"]
    for line in found.values():
        assert line.startswith("UserError: 0000:00:1")
        assert "\n" not in line


@everywhere
def test_with_memory_off_trapped_accesses_read_as_ones(which: str) -> None:
    found = device(which)["memory off"]
    assert found["before"] == found["after"] == 0x010000ED
    assert not found["enabled"]
    assert found["off"] == [0xFF, 0xFFFFFFFF, 0xFFFFFFFF]
    assert [event["event"] for event in found["events"]] == ["vfio-no-answer"]


@everywhere
def test_closing_leaves_no_file_and_no_mapping(which: str) -> None:
    found = device(which)
    assert found["left"] == [0, 0]
    assert found["left after sharing"] == [0, 0]
    assert "descriptor is closed" in found["closed"]


@everywhere
def test_a_second_user_is_told_who_has_the_device(which: str) -> None:
    assert "is in use by process" in device(which)["second user"]
    assert "(python3)" in device(which)["second user"]


@everywhere
def test_somebody_without_rights_is_told_which_file(which: str) -> None:
    # If the host has both interfaces, the message is about iommufd.
    node = "/dev/vfio/" if which == "stock" else "/dev/vfio/devices/vfio"
    assert f"cannot open {node}" in device(which)["without rights"]
    assert "Permission denied; you may not" in device(which)["without rights"]


@everywhere
def test_the_limit_on_locked_memory_is_told_with_the_number_needed(which: str) -> None:
    said = device(which)["memory limit"]
    assert "needs 4 MiB of memory locked" in said
    assert "limit is 1 MiB" in said
    assert "ulimit -l 4096" in said


@everywhere
def test_devices_share_an_address_space(which: str) -> None:
    found = device(which)["shared"]
    assert len(found["events"]) == 1
    assert all(found[name] for name in ("copied", "read", "aligned", "again"))


@everywhere
def test_kvm_learns_of_the_devices_files_and_lets_go_of_them(which: str) -> None:
    assert device(which)["for a VM"] == {"identification": 0x010000ED}


@everywhere
def test_unplugging_asks_and_waits_for_the_device(which: str) -> None:
    found = device(which)["unplugged"]
    assert found["asked"]
    assert found["waits"]
    assert found["gone"]
    assert "there is no PCI device" in found["told"]
    assert found["back"]


# --- binding ----------------------------------------------------------------------------------


@cache
def bindings(which: str) -> Any:
    return program(which, "vfio_binding.py", DISK, backend(which))


@everywhere
def test_a_disk_is_given_to_vfio_and_back_twenty_times(which: str) -> None:
    found = bindings(which)
    assert found["before"] == found["after"] == found["at last"] == ["nvme", "", []]
    assert found["bound"][:2] == ["vfio-pci", "vfio-pci"]
    assert found["given back"] == "nvme"
    assert found["leaked"] == [0, 0, 0]


@everywhere
def test_a_bound_disk_works(which: str) -> None:
    used = bindings(which)["used"]
    assert used["version"] == used["read"] == 0x10400  # NVMe 1.4
    assert used["msix"] == 65
    assert used["table can be mapped"]
    assert used["signalled"] == 1
    assert used["resettable"]


@everywhere
def test_binding_says_what_it_will_not_do(which: str) -> None:
    found = bindings(which)
    assert "belongs to the host's driver nvme" in found["not bound"]
    assert "`pyvmm vfio bind" in found["not bound"]
    assert found["unbind again"].startswith("2 pyvmm: ")
    assert "was not bound by pyvmm; its driver is nvme" in found["unbind again"]
    assert found["not VFIO's"].startswith("2 pyvmm: nvme is not a VFIO driver")
    assert found["no such driver"].startswith("3 pyvmm: this host has no driver vfio_none")
    assert found["malformed"].startswith("2 pyvmm: 'disk' is not the address of a PCI device")
    assert found["missing"].startswith("2 pyvmm: there is no PCI device 0000:ff:1f.7")
    assert found["unbind in use"].startswith("2 pyvmm: ")
    assert "is in use by process" in found["unbind in use"]


@everywhere
def test_the_list_has_regions_from_vfio(which: str) -> None:
    (entry,) = (entry for entry in bindings(which)["listed"] if entry["bdf"] == DISK)
    assert (entry["driver"], entry["vfio"], entry["bound_by_pyvmm"]) == ("vfio-pci", True, True)
    assert entry["regions"][0] == {
        "index": 0,
        "name": "BAR0",
        "size": 16 << 10,
        "mappable": [[0, 16 << 10]],
        "attribute": "uncached",
    }


# --- hosts that lack something ----------------------------------------------------------------


@stock
def test_a_group_with_a_driver_of_the_hosts_is_not_viable() -> None:
    assert pyvmm("stock", "bind", SHARED) == f"0 {SHARED} has driver vfio-pci"
    listed = pyvmm("stock", "list")
    assert re.search(rf"IOMMU group \d+ of {SHARED} is not viable", listed)
    assert f"belong to host drivers: {NEIGHBOUR} (nvme)" in listed
    assert pyvmm("stock", "bind", NEIGHBOUR) == f"0 {NEIGHBOUR} has driver vfio-pci"
    assert "is not viable" not in pyvmm("stock", "list")
    assert pyvmm("stock", "unbind", NEIGHBOUR) == f"0 {NEIGHBOUR} has driver nvme again"
    assert pyvmm("stock", "unbind", SHARED) == f"0 {SHARED} has no driver again"


@pytest.mark.profile(PROFILES["unsafe"])
def test_a_host_whose_interrupts_are_unsafe_says_how_to_allow_them() -> None:
    assert pyvmm("unsafe", "bind", EDU) == f"0 {EDU} has driver vfio-pci"
    listed = pyvmm("unsafe", "list")
    assert "VFIO_SET_IOMMU(iommu=3): Operation not permitted" in listed
    assert "allow_unsafe_interrupts=1" in listed


# --- faults -----------------------------------------------------------------------------------

FIRST_CAUSES = {
    "mapped twice": ("EEXIST", "mapped already"),
    "IOVA not aligned": ("EINVAL", "multiple of the IOMMU's page"),
    "IOVA of the doorbells": ("EINVAL", "a range it reserves"),
    "nothing is mapped behind it": ("EFAULT", "is not there"),
    "nothing to unmap": ("ENOENT", "nothing is mapped there"),
    "more vectors than there are": ("EINVAL", "more vectors than it has"),
    "mmap not aligned": ("EINVAL", "multiple of the host's page"),
    "mmap of configuration space": ("EINVAL", "does not map this part"),
    "mmap past the region": ("EINVAL", "does not map this part"),
    "memory of no owner": ("EPERM", "none does"),
    "second owner": ("EBUSY", "has an owner"),
    "unknown feature": ("ENOTSUP", "does not know one of these features"),
    "ring of 3": ("EINVAL", "power of two"),
    "ring not aligned": ("EINVAL", "not aligned"),
    "backend before the ring": ("EFAULT", "not set up"),
    "context ID of the host": ("EINVAL", "from 3 to"),
    "context ID twice": ("EADDRINUSE", "has this context ID"),
    "interface is in use": ("EBUSY", "has this interface"),
    "no TAP": ("EINVAL", "no TAP"),
}
"""The errno and words of the first cause of each fault of vfio_faults.py."""

BY_BACKEND = {
    "group": {"unmap splits": ("EINVAL", "split a mapping")},
    "iommufd": {
        "unmap splits": ("ENOENT", "split a mapping"),
        "a BAR is behind it": ("EFAULT", "device memory"),
    },
}


@everywhere
def test_the_first_cause_of_a_fault_is_the_right_one(which: str) -> None:
    edu = EDU if which == "stock" else SECOND_EDU
    assert pyvmm(which, "bind", edu).startswith("0 ")
    try:
        found = program(which, "vfio_faults.py", edu, backend(which))
    finally:
        pyvmm(which, "unbind", edu)
    wanted = FIRST_CAUSES | BY_BACKEND[backend(which)]
    wrong = {
        name: found[name]
        for name, (number, words) in wanted.items()
        if found[name][0] != number or words not in found[name][1]
    }
    assert wrong == {}
    assert found.keys() == wanted.keys() | {"a BAR is behind it"}


# --- the GPU ----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", on_built)
def test_the_gpus_regions_are_there_and_agree_with_their_mappings(which: str) -> None:
    found = program(which, "vfio_gpu.py", backend(which))
    assert found["driver"] == "nvgrace_gpu_vfio_pci"
    assert found["memory"]
    sizes = {index: region["size"] for index, region in found["regions"].items()}
    assert sizes == {"0": 16 << 20, "2": 1 << 30, "4": 512 << 20, "7": 4096}
    for index in ("0", "2", "4"):
        region = found["regions"][index]
        assert region["areas"] == [[0, region["size"]]]
        assert region["aligned"]
        assert region["written, then read"]
        assert region["read as written"]
        assert region["part"] == [0x1000, 0x2000]
    # Whole regions are aligned so that stage 2 can use blocks; unaligned parts get pages.
    assert found["blocks"] == {index: ["2M block", "4K"] for index in ("0", "2", "4")}
    assert "region 4 (BAR4)" in found["past"]
    assert "[0x0, 0x20000000)" in found["past"]


@pytest.mark.kernels
@built
def test_the_list_tells_what_is_cacheable() -> None:
    listed = pyvmm("built", "list")
    assert " 4 BAR4              512 MiB  mappable, cacheable" in listed
    assert " 2 BAR2                1 GiB  mappable, uncached" in listed
