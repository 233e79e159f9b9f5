"""A Linux guest uses a cacheable BAR as the memory it is."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.cpio import CpioWriter
from vmm.lab.guest import stock_guest
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.gh200 import BDF
from vmm.lab.kernel.flavour import BuiltKernel

pytestmark = [
    pytest.mark.lab,
    pytest.mark.kernels,
    pytest.mark.profile("gh200"),
    pytest.mark.timeout(7200),
]
SOURCE = Path(__file__).parent / "guest" / "coherent_memory.c"
MARK = 0x434F4845524E5421

READ_BACK = f"""
import sys
from vmm.vfio.device import open_device
with open_device({BDF!r}) as device:
    device.enable_memory()
    region = device.region(4)
    wrong = [at for at in range(0, region.size, 1 << 20)
             if int.from_bytes(region.read_bytes(at, 8), "little") != at ^ {MARK:#x}]
    print(len(wrong), "wrong of", region.size >> 20)
"""


@pytest.fixture(scope="module")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Append the memory test to the small guest's initramfs: Linux unpacks both archives."""
    where = tmp_path_factory.mktemp("guest")
    program = where / "coherent-memory"
    command = ["aarch64-linux-gnu-gcc", "-O2", "-Wall", "-Werror", "-static"]
    subprocess.run([*command, "-o", str(program), str(SOURCE)], check=True)
    path = where / "initramfs.cpio"
    with path.open("wb") as out:
        out.write(stock_guest.initramfs().read_bytes())
        archive = CpioWriter(out)
        archive.file("coherent-memory", program.read_bytes(), 0o755)
        archive.close()
    return path


def test_a_guest_fills_all_of_region_4_and_vfio_sees_it(
    lab_host: Callable[[str], Host], initramfs: Path, tmp_path: Path
) -> None:
    host = lab_host("gh200")
    events = tmp_path / "events"
    done = host.run(
        [
            *("pyvmm", "run", str(BuiltKernel("mainline").image()), "--host", "native"),
            *("--bar", f"{BDF}:4,cache=require", "--verify", "--initrd", str(initramfs)),
            *("--events", str(events), "--cmdline"),
            'console=ttyAMA0 quiet panic=-1 pyvmm.run="/coherent-memory" pyvmm.then=poweroff',
        ],
        timeout=600,
    )
    said = done.stdout.decode(errors="replace")
    assert done.status == 0, said + done.stderr.decode()
    assert "512 MiB, 0 errors" in said
    verdicts = [json.loads(line) for line in events.read_text().splitlines()]
    assert [event["memory_type"] for event in verdicts if event["event"] == "verdict"] == [
        "forced WB"
    ]

    seen = host.run(["python3", "-c", READ_BACK], timeout=300)
    assert seen.stdout == b"0 wrong of 512\n", seen.stderr.decode()
