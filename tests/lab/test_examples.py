"""The examples do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.guest.flat_guest import ECHO, PANIC, assemble
from vmm.lab.guest.uki import guest_image
from vmm.lab.host import packages
from vmm.lab.host.emulated_host import Host

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]
EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 600.0


@pytest.fixture
def said(lab_host: Callable[[str], Host], request: pytest.FixtureRequest) -> Callable[..., str]:
    """``said("hello_mmio.py")`` runs an example in a lab host, and returns what it printed."""
    marker = request.node.get_closest_marker("profile")
    host = lab_host(marker.args[0] if marker else "fwb")

    def said(example: str, *arguments: str | Path) -> str:
        command = ["python3", str(EXAMPLES / example), *map(str, arguments)]
        done = host.run(command, timeout=PATIENCE)
        assert done.status == 0, done.stdout.decode() + done.stderr.decode()
        return done.stdout.decode()

    return said


def test_hello_prints_what_its_guest_says(said: Callable[..., str]) -> None:
    assert said("hello_mmio.py") == "Hello from EL1!\n"


def test_a_page_is_seen_at_two_addresses_and_protected_at_a_third(said: Callable[..., str]) -> None:
    assert said("memory_slots.py").splitlines()[3:] == [
        "refused: a store of 42 to 0x60000108",
        "the guest left us 42",
        "and did not reach 0",
    ]


def test_the_uart_of_eleven_lines_works(said: Callable[..., str]) -> None:
    assert said("own_uart.py").splitlines() == [
        "A UART of eleven lines.",
        "It was asked 72 times for 24 bytes.",
    ]


def test_linux_boots_and_answers(said: Callable[..., str]) -> None:
    release, mmu, level, ending = said("boot_linux.py", guest_image()).splitlines()
    assert re.fullmatch(r"Linux \d+\.\S+ on 2 CPUs", release)
    assert mmu == "its MMU is on"
    assert level in {"it is at EL0", "it is at EL1"}
    assert ending == "it has powered-off"


def test_exits_are_counted_where_they_are(said: Callable[..., str]) -> None:
    head, *rows = said("trace_exits.py", guest_image()).splitlines()
    total = int(head.split()[0])
    counts = [int(row.split()[0]) for row in rows]
    assert 100 < sum(counts) <= total
    assert counts == sorted(counts, reverse=True)
    assert any("UART+0x000" in row and "MmioWrite" in row for row in rows), rows


def test_linux_drives_a_device_of_ones_own(said: Callable[..., str]) -> None:
    assert "no entropy." in said("own_virtio_device.py", guest_image()).partition("|")[2]


@pytest.mark.profile("vfio")
def test_a_guest_reads_a_bar(lab_host: Callable[[str], Host], said: Callable[..., str]) -> None:
    edu = "0000:00:10.0"
    assert lab_host("vfio").run(["pyvmm", "vfio", "bind", edu]).status == 0
    assert said("map_bar.py", edu).splitlines() == [
        "the guest read 0x010000ed, stored 0x1234, read 0xffffedcb",
        "that is edu",
    ]


def test_flags_are_tried(said: Callable[..., str]) -> None:
    first, second, last = said("try_flag.py").splitlines()
    assert first == "bit 0: taken KVM_MEM_LOG_DIRTY_PAGES"
    assert second == "bit 1: taken KVM_MEM_READONLY"
    assert last == "all others are refused"
    assert "Invalid argument" in said("try_flag.py", "3")


def test_gdb_breaks_into_a_kernel(
    lab_host: Callable[[str], Host], said: Callable[..., str]
) -> None:
    packages.install(lab_host("fwb"), ["gdb"])
    text = said("break_in.py", guest_image())
    hit = re.search(r'Thread (\d) "vCPU \d" hit Breakpoint 1, (0x\w+) in', text)
    assert hit, text
    assert len(re.findall(r'"vCPU \d" \(vCPU \d, on\)', text)) == 4
    assert re.search(r"\$1 = 0xff[f0]\w{13}\n\$2 = 1\n", text), text
    assert text.endswith("detached]\nit has powered-off\n"), text


def test_a_kernel_is_tested_by_pytest(lab_host: Callable[[str], Host]) -> None:
    """In a process of its own, as users run it, with an emulated host of its own."""
    lab_host("fwb")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir"]
    command += [str(EXAMPLES), str(EXAMPLES / "test_kernel.py"), "--vmm-host", "fwb"]
    command += ["--vmm-kernel", str(guest_image())]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_a_device_is_fuzzed() -> None:
    command = [sys.executable, str(EXAMPLES / "fuzz_device.py"), "20000", "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.fullmatch(
        r"seed 1: 20000 accesses, \d+ refused, (\d+) changes of the line\n", done.stdout
    )
    assert found, done.stdout
    assert int(found[1]) > 10, "the alarm was never reached"


@pytest.mark.parametrize(
    ("source", "status"), [(ECHO, 0), (PANIC, 4)], ids=["powers off", "panics"]
)
def test_a_printed_program_does_what_the_command_line_does(
    lab_host: Callable[[str], Host], tmp_path: Path, source: str, status: int
) -> None:
    host, guest = lab_host("fwb"), assemble(tmp_path, source)
    options = ["run", guest.name, "--memory", "64M", "--cpus", "2", "--host", "native"]
    printed = host.run(["pyvmm", *options, "--print-python"], cwd=tmp_path)
    assert printed.status == 0, printed.stderr
    assert len(printed.stdout.splitlines()) <= 10
    program = tmp_path / "program.py"
    program.write_bytes(printed.stdout)
    one, other = (
        host.run(command, stdin=b"hello\4", cwd=tmp_path, timeout=PATIENCE)
        for command in (["pyvmm", *options], ["python3", str(program)])
    )
    assert one.status == other.status == status, one.stderr + other.stderr
    assert one.stdout == other.stdout


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_fits_on_a_screen(example: Path) -> None:
    assert len(example.read_text().splitlines()) <= 60
    assert example.name in (EXAMPLES / "README.md").read_text()
