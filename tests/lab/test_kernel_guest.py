"""The kernel built for lab hosts boots as a guest, too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmm.lab.guest import stock_guest
from vmm.lab.host.emulated_host import Host
from vmm.lab.kernel.flavour import BuiltKernel

if TYPE_CHECKING:
    from collections.abc import Callable

# The first test may build a kernel.
pytestmark = [
    pytest.mark.lab,
    pytest.mark.kernels,
    pytest.mark.profile("gh200"),
    pytest.mark.timeout(7200),
]


@pytest.fixture
def host(lab_host: Callable[[str], Host]) -> Host:
    return lab_host("gh200")


def there(path: Path) -> str:
    """Return the path at which the host sees one of our files."""
    return f"/host{path}"


@pytest.mark.parametrize("cpus", [1, 4])
def test_the_lab_kernel_boots_to_userland_as_a_guest_and_powers_off(host: Host, cpus: int) -> None:
    command_line = "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"
    # fmt: off
    done = host.run(
        [
            "pyvmm", "run", "--host", "native", "--cpus", str(cpus), "--memory", "256M",
            "--initrd", there(stock_guest.initramfs()), "--cmdline", command_line,
            there(BuiltKernel("mainline").image()),
        ],
        timeout=120,
    )
    # fmt: on
    text = done.stdout.decode(errors="replace")
    assert done.status == 0, done.stderr.decode()
    assert "pyvmm guest: Linux 7" in text
    assert f"CPUs online: {cpus}\r\n" in text
