"""Fixtures for whoever tests a kernel, a firmware or a VMM with pytest; see README.md.

pytest loads this where pyvmm is installed (entry point ``pytest11``): import nothing early.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from vmm.library.lab import Lab
    from vmm.library.machine import Machine

SHOWN: Final = 4000
"""Bytes of a console's end in the report of a test that fails."""

_MADE: Final = pytest.StashKey[list["Machine"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the fixtures."""
    group = parser.getgroup("pyvmm", "machines (vmm_machine)")
    group.addoption(
        "--vmm-host",
        default="auto",
        metavar="auto|native|PROFILE",
        help="Where machines run: on this host, or in an emulated one.",
    )
    group.addoption("--vmm-kernel", metavar="IMAGE", help="The kernel that vmm_kernel returns.")


@pytest.fixture(scope="session")
def vmm_lab(pytestconfig: pytest.Config) -> Iterator[Lab | None]:
    """Return the emulated host that all machines run in; None: they run on this host."""
    from vmm.kvm.system import DEVICE
    from vmm.library.lab import Lab

    host = str(pytestconfig.getoption("--vmm-host"))
    native = os.uname().machine == "aarch64" and Path(DEVICE).exists()
    if host == "native" or (host == "auto" and native):
        yield None
        return
    with Lab("fwb" if host == "auto" else host) as lab:
        yield lab


@pytest.fixture
def vmm_kernel(pytestconfig: pytest.Config) -> Path:
    """Return the kernel under test, ``--vmm-kernel``. Without it the test is skipped."""
    found = pytestconfig.getoption("--vmm-kernel")
    if found is None:
        pytest.skip("no --vmm-kernel IMAGE")
    return Path(str(found))


@pytest.fixture
def vmm_machine(
    request: pytest.FixtureRequest, vmm_lab: Lab | None
) -> Iterator[Callable[..., Machine]]:
    """Return a function that makes machines, with the arguments of `vmm.Machine`.

    They end with the test. If it fails, its report has the ends of their consoles.
    """
    from vmm.library.machine import Machine

    made = request.node.stash[_MADE] = []

    def make(*arguments: Any, **options: Any) -> Machine:
        machine = Machine(*arguments, on=vmm_lab, **options)
        made.append(machine)
        return machine

    yield make
    for machine in made:
        machine.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a test that failed what its machines said last."""
    report = yield
    if report.failed:
        made: list[Machine] = item.stash.get(_MADE, [])
        for number, machine in enumerate(made):
            text = machine.console.output[-SHOWN:].decode(errors="replace")
            report.sections.append((f"console of machine {number}", text))
    return report
