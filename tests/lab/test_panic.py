"""However a Linux panics, the run ends with status 4; and no run is longer than it may be."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmm.lab.guest import stock_guest
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import Completed, inside

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@pytest.fixture
def run(lab_host: Callable[[str], Host]) -> Callable[..., Completed]:
    """``run(words, option...)`` boots Debian's cloud kernel with *words* on its command line."""

    def run(words: str, *options: str) -> Completed:
        cmdline = f"console=ttyAMA0 quiet {words}"
        initrd = inside(stock_guest.initramfs())
        kernel = inside(stock_guest.kernel("6.12", stock_guest.CLOUD))
        command = ["pyvmm", "run", "--initrd", initrd, "--cmdline", cmdline, *options, kernel]
        return lab_host("fwb").run(command, timeout=300)

    return run


@pytest.mark.parametrize("words", ["", "panic=-1"], ids=["stays", "resets"])
def test_a_kernel_that_panics_ends_the_run_with_4(
    run: Callable[..., Completed], words: str
) -> None:
    done = run(f"{words} pyvmm.then=panic")
    assert done.status == 4, done.stderr
    assert done.stderr == b"pyvmm: the guest has panicked: sysrq triggered crash\n"
    assert done.stdout.count(b"pyvmm guest:") == 1


def test_a_panic_can_be_left_to_the_guest(run: Callable[..., Completed]) -> None:
    done = run("panic=-1 pyvmm.then=panic", "--panic", "ignore", "--no-reboot")
    assert (done.status, done.stderr) == (0, b"")


def test_words_on_the_console_alone_are_no_panic(run: Callable[..., Completed]) -> None:
    words = "Kernel panic - not syncing: x"
    script = f"echo '{words}'; echo '---[ end {words} ]---'; echo alive; sleep 5"
    done = run(f'pyvmm.run="{script}" pyvmm.then=poweroff')
    assert (done.status, done.stderr) == (0, b"")
    assert b"alive" in done.stdout


def test_a_timeout_ends_the_run_with_its_own_status(run: Callable[..., Completed]) -> None:
    done = run("pyvmm.then=idle", "--timeout", "4.5")
    assert done.status == 124
    assert done.stderr == b"pyvmm: --timeout: the guest has run for 4.5 s\n"
