"""Files as read-only memory, also while others make them shorter."""

from __future__ import annotations

import gc
import mmap
import os
from pathlib import Path

import pytest

from tests.arm64.kernel_files import arm64_image
from vmm import sigbus
from vmm.arm64 import image, payload
from vmm.arm64.filemap import map_file
from vmm.config import MachineConfig
from vmm.sigbus import LostError


@pytest.mark.parametrize("eager", [0, 1 << 20])
def test_a_file_that_is_cut_is_an_error_and_not_the_end(tmp_path: Path, eager: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4 * mmap.PAGESIZE)
    view = map_file(path, eager)
    os.truncate(path, mmap.PAGESIZE)
    assert bytes(view) == b"x" * mmap.PAGESIZE + bytes(3 * mmap.PAGESIZE)
    with pytest.raises(LostError, match=f"^{path}: .* made shorter"):
        sigbus.check()
    del view
    gc.collect()
    sigbus.check()


def test_a_kernel_that_is_cut_while_it_is_read_is_no_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "Image"
    path.write_bytes(arm64_image().ljust(4 * mmap.PAGESIZE, b"\0"))
    config = MachineConfig(image=path)
    assert payload.load(config).kernel is not None
    identify = image.identify

    def cut(data: memoryview, name: str, limit: int) -> image.Kernel:
        found = identify(data, name, limit)
        os.truncate(path, 0)
        assert data[-1] == 0
        return found

    monkeypatch.setattr(image, "identify", cut)
    with pytest.raises(LostError, match=f"^{path}: "):
        payload.load(config)
