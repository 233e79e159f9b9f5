"""--firmware and --flash, as the user writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.address_range import AddressRange
from vmm.arm64 import boot, layout, payload
from vmm.config import MachineConfig
from vmm.config.firmware import FlashConfig, parse_flash
from vmm.errors import UserError

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "flash"),
    [
        ("vars.fd", FlashConfig(Path("vars.fd"))),
        ("/a/b=c,ro", FlashConfig(Path("/a/b=c"), read_only=True)),
    ],
)
def test_flash_is_a_file_that_may_be_read_only(text: str, flash: FlashConfig) -> None:
    assert parse_flash(text) == flash


@pytest.mark.parametrize("text", ["", ",ro", "v,", "v,rw", "v,ro=1", "v,size=4M"])
def test_what_cannot_be_flash_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(UserError, match=r"--flash.*; ") as error:
        parse_flash(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "nothing to boot; name an IMAGE, or use --firmware FILE"),
        ({"flash": FlashConfig(Path("v"))}, "nothing to boot; "),
        (
            {"firmware": Path("f"), "image": Path("i")},
            "--firmware f: IMAGE i is for machines without: ",
        ),
        (
            {"firmware": Path("f"), "initrd": Path("i")},
            "--firmware f: --initrd i is for machines without: ",
        ),
    ],
)
def test_a_machine_boots_one_thing(config: dict[str, Path], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MachineConfig(**config)  # type: ignore[arg-type]


def test_a_kernel_may_have_flash_beside_it() -> None:
    MachineConfig(image=Path("i"), flash=FlashConfig(Path("v")))


def test_firmware_starts_at_the_beginning_of_flash_and_finds_the_tree_where_ram_begins() -> None:
    ram = AddressRange(layout.RAM, 128 * MIB)
    found = payload.load(MachineConfig(firmware=Path("f")))
    plan = found.place(ram)
    assert (plan.kernel, plan.initrd, found.cmdline) == (None, None, None)
    assert plan.dtb.base == layout.RAM
    assert plan.dtb.end <= ram.end
    assert plan.registers["pc"] == layout.FLASH
    assert plan.registers["x0"] == layout.RAM
    assert plan.registers["pstate"] == boot.PSTATE


def test_firmware_is_told_of_a_command_line() -> None:
    config = MachineConfig(firmware=Path("f"), cmdline="quiet")
    assert payload.load(config).cmdline == "quiet"
