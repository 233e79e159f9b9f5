"""Fixtures of tests in emulated hosts, which are sorted by profile and share each host."""

from __future__ import annotations

import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.lab.hosts import SharedHost, group_of, profile_of, sort
from tests.lab.program import PATIENCE, PYVMM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm.lab.host.emulated_host import Host


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort tests by profile; under pytest-xdist, mark each with its group."""
    sort(items)
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            item.add_marker(pytest.mark.xdist_group(group_of(item)))


_shared = SharedHost()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Record which host the test's fixtures may ask for."""
    _shared.wanted = profile_of(item)


@pytest.fixture(scope="session")
def lab_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Host]]:
    """``lab_host("fwb")`` is the host of that profile, shared with the profile's other tests.

    It can write the tests' temporary directories.
    """

    def get(profile: str) -> Host:
        host = _shared.get(profile)
        host.agent.allow([tmp_path_factory.getbasetemp()])
        return host

    with closing(_shared):
        yield get


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep a host up for users' commands, apart from those that the user keeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        subprocess.run([PYVMM, "lab", "up", "fwb"], check=True, timeout=PATIENCE)
        yield
        subprocess.run([PYVMM, "lab", "down", "fwb"], check=True, timeout=PATIENCE)
