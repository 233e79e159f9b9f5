"""Machines from options by name: the same as from the command line, without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from vmm.cli.run import run
from vmm.config import MachineConfig
from vmm.config.disk import DiskConfig
from vmm.config.options import OPTIONS, machine
from vmm.errors import UserError

NOT_A_MACHINES = {
    "host",
    "request",
    "events",
    "timeout",
    "escape",
    "console_filter",
    "kernel_tree",
    "print_config",
    "print_python",
    "trace",
    "record_ioctls",
    "sandbox",
    "cgroup",
    "name",
    "control",
    "shell",
    "dry_run",
    "dump_dtb",
}
"""Options of ``pyvmm run`` that are about the run, or that others make of these."""


def test_all_options_of_a_machine_are_there() -> None:
    names = {
        parameter.opts[0].lstrip("-").replace("-", "_")
        for parameter in run.params
        if isinstance(parameter, click.Option)
    }
    assert names - NOT_A_MACHINES == OPTIONS.keys() - {"image"}


def test_values_are_those_of_the_command_line_or_their_own_kind() -> None:
    one = machine(
        "Image", memory="2G", cpus=4, disk="a.img,ro", net=["user", "tap"], rng=True, vsock=5
    )
    assert one == machine(
        Path("Image"), memory="2048", cpus=4, disk=["a.img,ro"], net=("user", "tap"), rng=True,
        vsock="5",
    )  # fmt: skip
    assert (one.memory, one.cpus, one.rng, one.vsock) == (2 << 30, 4, True, 5)
    assert one.disks == (DiskConfig(Path("a.img"), read_only=True),)
    assert machine("Image", no_reboot=True).reboot is False
    assert machine("Image", balloon_size="64M").balloon == 64 << 20
    assert machine("Image", balloon=True).balloon == 0


def test_what_is_left_out_is_the_default() -> None:
    assert machine("Image") == MachineConfig(image=Path("Image"))
    assert machine("Image", disk=[], initrd=None, rng=False) == machine("Image")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"memroy": "2G"}, "memroy: a machine has no such option"),
        ({"cpus": "4"}, "cpus: '4' is no int"),
        ({"rng": "yes"}, "rng: 'yes' is no bool"),
        ({"panic": "ignroe"}, "panic: there is no 'ignroe'; use exit, ignore"),
        ({"memory": "much"}, "--memory: 'much' is not a size"),
        ({"disk": [3]}, "disk: 3 is no"),
        ({"initrd": 3}, "initrd: 3 is no str"),
        ({"net": "nett"}, "--net nett"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as found:
        machine("Image", **options)
    assert str(found.value).startswith(complaint)
    assert "\n" not in str(found.value)
