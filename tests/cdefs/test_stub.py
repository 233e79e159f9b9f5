"""The extension's types for mypy are those of the extension."""

from __future__ import annotations

import stub


def test_the_stub_is_up_to_date() -> None:
    assert stub.STUB.read_text() == stub.text(), "run: python cdefs/stub.py"


def test_the_stub_has_types() -> None:
    text = stub.text()
    assert "    KVM_RUN: int\n" in text
    assert "    pyvmm_ioctl: Callable[[int, int, int], int]\n" in text
