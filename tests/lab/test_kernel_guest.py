"""The kernel built for lab hosts boots as a guest, too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmm.lab.guest import stock_guest
from vmm.lab.host import packages
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


@pytest.mark.parametrize("transport", ["mmio", "pci"])
def test_a_command_runs_in_a_kernel_that_was_built_here(
    host: Host, tmp_path: Path, transport: str
) -> None:
    packages.install(host, ["virtiofsd"])
    boot = tmp_path / "arch/arm64/boot"
    boot.mkdir(parents=True)
    kernel = BuiltKernel("mainline")
    (boot / "Image").write_bytes(kernel.image().read_bytes())
    (tmp_path / ".config").write_bytes(kernel.config().read_bytes())
    command = ["pyvmm", "run", "--host", "native", "--kernel-tree", ".", "--transport", transport]
    # The cache that the initrd comes from is not the lab host's.
    command += ["--initrd", there(stock_guest.initramfs())]
    command += ["--", "sh", "-c", "cat >got; uname -r; echo no >&2; exit 5"]
    done = host.run(command, stdin=b"input", cwd=tmp_path, timeout=300)
    assert (done.status, done.stderr) == (5, b"no\n")
    assert done.stdout.endswith(b"-mainline\n")
    assert (tmp_path / "got").read_bytes() == b"input"
