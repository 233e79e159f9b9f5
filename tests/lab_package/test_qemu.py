"""Profiles as command lines of QEMU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmm.errors import HostError, UserError
from vmm.lab.host import profiles, qemu, qmp
from vmm.lab.host.profile import Profile

FWB = profiles.PROFILES["fwb"]


def arguments(profile: Profile, **fields: Path) -> dict[str, list[str]]:
    """Return QEMU's options for *profile*, each with the values it is given."""
    files = {"image": Path("/k"), "initrd": Path("/i"), "directory": Path("/d"), **fields}
    argv = qemu.arguments(profile, **files)  # type: ignore[arg-type]
    options: dict[str, list[str]] = {}
    name = ""
    for word in argv:
        if word.startswith("-"):
            name = word
            options.setdefault(name, [])
        else:
            options[name].append(word)
    return options


def test_every_host_has_el2() -> None:
    for profile in profiles.PROFILES.values():
        assert "virtualization=on" in arguments(profile)["-M"][0].split(",")


@pytest.mark.parametrize(
    ("name", "cpu", "gic"),
    [
        ("fwb", "max,pauth-impdef=on", "gic-version=3"),
        ("nofwb", "neoverse-n1", "gic-version=3"),
        ("gicv2", "max,pauth-impdef=on", "gic-version=2"),
    ],
)
def test_profiles_differ_in_cpu_and_interrupt_controller(name: str, cpu: str, gic: str) -> None:
    options = arguments(profiles.profile(name))
    assert options["-cpu"] == [cpu]
    assert gic in options["-M"][0].split(",")


def test_memory_and_cpus_are_the_profiles() -> None:
    options = arguments(replace(FWB, memory=3 << 29, cpus=7))
    assert options["-m"] == ["1536M"]
    assert options["-smp"] == ["7"]


def test_little_translated_code_is_kept() -> None:
    (accelerator,) = arguments(FWB)["-accel"]
    (size,) = (word for word in accelerator.split(",") if word.startswith("tb-size="))
    assert 64 <= int(size.removeprefix("tb-size=")) <= 256


def test_a_profile_adds_machine_properties_devices_and_a_device_tree() -> None:
    profile = replace(FWB, machine=("iommu=smmuv3",), devices=("bochs-display,addr=1",))
    options = arguments(profile, device_tree=Path("/d/host.dtb"))
    assert options["-M"][0].endswith(",iommu=smmuv3")
    assert "bochs-display,addr=1" in options["-device"]
    assert options["-dtb"] == ["/d/host.dtb"]


def test_a_profile_adds_to_the_kernel_command_line() -> None:
    (line,) = arguments(replace(FWB, command_line="mem=2G"))["-append"]
    assert line.endswith(" mem=2G")


def test_the_agent_is_reachable_from_this_machine_only() -> None:
    (network,) = arguments(FWB)["-netdev"]
    assert "hostfwd=tcp:127.0.0.1:" in network
    assert "restrict=on" in network


def test_the_emulator_confines_itself() -> None:
    (sandbox,) = arguments(FWB)["-sandbox"]
    assert sandbox.split(",")[0] == "on"
    assert {"spawn=deny", "elevateprivileges=deny"} <= set(sandbox.split(","))


def test_the_token_is_not_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    assert "secret" not in str(arguments(FWB, directory=tmp_path))


def test_the_dumped_device_tree_is_of_the_same_machine() -> None:
    argv = qemu.dump_device_tree(FWB, Path("/t"))
    assert argv[argv.index("-M") + 1] == qemu.machine(FWB) + ",dumpdtb=/t"


def test_an_unknown_profile_lists_those_there_are() -> None:
    with pytest.raises(UserError, match="no lab profile 'fbw'; there are: fwb, nofwb, gicv2"):
        profiles.profile("fbw")


def fake(directory: Path, text: str) -> str:
    path = directory / "qemu"
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)
    return str(path)


def test_the_emulator_tells_its_version(tmp_path: Path) -> None:
    path = fake(tmp_path, "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)")
    assert qemu.version([path]) == (7, 2)


def test_what_is_no_emulator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="does not tell its version"):
        qemu.version([fake(tmp_path, "hello")])


USERNET = """\
Hub -1 (net):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  14       127.0.0.1 40993       10.0.2.15     1     0     0
"""


def test_the_forwarded_port_is_found() -> None:
    assert qmp.parse_usernet(USERNET) == 40993


def test_no_forwarded_port_is_an_error() -> None:
    with pytest.raises(HostError, match="forwards no port"):
        qmp.parse_usernet("")


def test_a_monitor_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="QEMU does not answer"):
        qmp.execute(tmp_path / "qmp", "quit")
