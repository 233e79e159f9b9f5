"""The compiled ABI is that of the system's headers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vmm._native import ffi, lib

CDEFS = Path(__file__).parents[2] / "cdefs"
STRUCTS = [f"struct {name}" for name in ffi.list_types()[1]]
COMPILERS = ["gcc", "aarch64-linux-gnu-gcc"]


@pytest.mark.parametrize("name", STRUCTS)
def test_each_struct_is_as_the_compiler_has_it(name: str) -> None:
    """Cffi compares a struct with the compiler's, but only on first use."""
    assert ffi.sizeof(name) > 0


def test_each_constant_is_a_number() -> None:
    names = [name for name in dir(lib) if name.isupper()]
    assert len(names) > 300
    assert all(isinstance(getattr(lib, name), int) for name in names)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_our_header_agrees_with_the_systems(compiler: str) -> None:
    """Macros that both define have the same tokens, structs the same layout."""
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    command = [compiler, "-Wall", "-Wextra", "-Werror", f"-I{CDEFS}", "-fsyntax-only", "-xc", "-"]
    result = subprocess.run(
        command, input='#include "kvm_abi.h"\n', text=True, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_wrong_number_in_our_header_would_be_noticed(compiler: str) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    text = (CDEFS / "kvm_abi.h").read_text()
    wrong = text + "\n#define KVM_CAP_USER_MEMORY 4\n"
    command = [compiler, "-Werror", "-fsyntax-only", "-xc", "-"]
    result = subprocess.run(command, input=wrong, text=True, capture_output=True, check=False)
    assert "KVM_CAP_USER_MEMORY" in result.stderr


def test_ioctl_numbers_are_the_kernels() -> None:
    assert lib.KVM_RUN == 0xAE80
    assert lib.KVM_SET_USER_MEMORY_REGION == 0x4020AE46
    assert lib.KVM_SET_USER_MEMORY_REGION2 == 0x40A0AE49
    assert lib.KVM_ARM_VCPU_INIT == 0x4020AEAE
