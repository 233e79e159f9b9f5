"""Lab hosts for tests: started once per profile and session, ended by their own ids."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from vmm.lab.host.emulated_host import Host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def lab_host() -> Iterator[Callable[[str], Host]]:
    """``lab_host("fwb")`` is a host of that profile, the same one for the whole session."""
    hosts: dict[str, Host] = {}
    with ExitStack() as stack:

        def get(profile: str) -> Host:
            if profile not in hosts:
                hosts[profile] = stack.enter_context(Host.start(profile))
            return hosts[profile]

        yield get
