"""The lab's own kernel is one for guests too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmm.lab.guest import stock_guest
from vmm.lab.host import gh200
from vmm.lab.host.emulated_host import Host

if TYPE_CHECKING:
    from collections.abc import Iterator

# The first test may build a kernel.
pytestmark = [pytest.mark.lab, pytest.mark.kernels, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    (profile,) = (profile for profile in gh200.profiles() if profile.name == "gh200")
    with Host.start(profile) as host:
        yield host


def there(path: Path) -> str:
    """Return where the host sees a file of ours."""
    return f"/host{path}"


@pytest.mark.parametrize("cpus", [1, 4])
def test_the_lab_kernel_boots_to_userland_as_a_guest_and_powers_off(host: Host, cpus: int) -> None:
    (profile,) = (profile for profile in gh200.profiles() if profile.name == "gh200")
    command_line = "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"
    # fmt: off
    done = host.run(
        [
            "pyvmm", "run", "--host", "native", "--cpus", str(cpus), "--memory", "256M",
            "--initrd", there(stock_guest.initramfs()), "--cmdline", command_line,
            there(profile.kernel.image()),
        ],
        timeout=120,
    )
    # fmt: on
    text = done.stdout.decode(errors="replace")
    assert done.status == 0, done.stderr.decode()
    assert "pyvmm guest: Linux 7" in text
    assert f"CPUs online: {'0' if cpus == 1 else f'0-{cpus - 1}'}\r\n" in text
