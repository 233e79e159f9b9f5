"""Fixtures for tests that need KVM: this machine's, or a lab host's when they run there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.kvm.tiny import Op, Tiny, build
from vmm.kvm.system import DEVICE, System
from vmm.kvm.vm import Vm


@pytest.fixture
def system() -> Iterator[System]:
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        pytest.skip(f"no {DEVICE} that we may use")
    with System.open() as system:
        yield system


@pytest.fixture
def vm(system: System) -> Iterator[Vm]:
    with system.create_vm() as vm:
        yield vm


@pytest.fixture
def tiny(vm: Vm) -> Iterator[Callable[..., Tiny]]:
    with ExitStack() as owned:

        def start(*program: Op, data_flags: int = 0) -> Tiny:
            return build(vm, list(program), owned, data_flags)

        yield start
