"""A test of your kernel, with pytest: boot it, ask it, and break it, as a function with asserts.

    pytest examples/test_kernel.py --vmm-kernel guest.img

The fixtures come with pyvmm. On a machine without KVM for arm64 the guests run in an emulated host.
If a test fails, its report has the last that the guest said.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

import vmm

PROMPT = r"guest:\S*# "


@pytest.mark.parametrize("cpus", [1, 3])
def test_all_cpus_come_up(
    vmm_machine: Callable[..., vmm.Machine], vmm_kernel: Path, cpus: int
) -> None:
    machine = vmm_machine(vmm_kernel, memory="512M", cpus=cpus)
    machine.start()
    machine.console.expect(PROMPT)
    machine.console.send("nproc\n")
    assert machine.console.expect(r"\n(\d+)\r\n")[1] == str(cpus).encode()
    machine.console.send("exit\n")
    assert machine.wait(timeout=300) == "powered-off"


def test_a_panic_is_one(vmm_machine: Callable[..., vmm.Machine], vmm_kernel: Path) -> None:
    machine = vmm_machine(vmm_kernel, memory="512M")
    machine.start()
    machine.console.expect(PROMPT)
    machine.console.send("echo c >/proc/sysrq-trigger\n")
    assert machine.wait(timeout=300) == "panicked"
    assert b"sysrq triggered crash" in machine.console.output
