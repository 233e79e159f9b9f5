"""`pyvmm run IMAGE -- COMMAND`: a command in the guest is like one here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from vmm.lab.guest import stock_guest, uki
from vmm.lab.host import packages
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import Completed, inside
from vmm.library.command import Command

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@pytest.fixture
def host(lab_host: Callable[[str], Host]) -> Host:
    host = lab_host("fwb")
    packages.install(host, ["virtiofsd"])
    return host


@pytest.fixture
def words() -> list[str]:
    return ["pyvmm", "run", inside(uki.guest_image())]


@pytest.fixture
def run(host: Host, words: list[str], tmp_path: Path) -> Callable[..., Completed]:
    """``run(stdin, word..., options=[])`` runs the command in the guest, in *tmp_path*."""

    def run(stdin: bytes, *command: str, options: Sequence[str] = ()) -> Completed:
        line = [*words, *options, "--", *command]
        return host.run(line, stdin=stdin, cwd=tmp_path, timeout=300)

    return run


@pytest.mark.parametrize("transport", ["mmio", "pci"])
def test_input_output_errors_directory_and_status_are_the_commands(
    run: Callable[..., Completed], tmp_path: Path, transport: str
) -> None:
    data = bytes(range(256)) * 4096
    (tmp_path / "file").write_bytes(data)
    script = 'pwd >/dev/stderr; echo "$0|$1|" >&2; cat >got; cat file; sleep 1000 & exit 7'
    words = "sh", "-c", script, "it's", 'a "$b" \\\n\u00e4'
    done = run(b"hi\n" * 100_000, *words, options=["--transport", transport])
    assert done.stderr.decode() == f'{tmp_path}\nit\'s|a "$b" \\\n\u00e4|\n'
    assert done.stdout == data
    assert done.status == 7
    assert (tmp_path / "got").read_bytes() == b"hi\n" * 100_000


def test_a_command_that_is_not_there_is_127(run: Callable[..., Completed]) -> None:
    done = run(b"", "no-such-command", "-x")
    assert (done.status, done.stdout) == (127, b"")
    assert done.stderr == b"pyvmm guest: no-such-command: not found\n"


def test_a_guest_that_fails_shows_its_messages(run: Callable[..., Completed]) -> None:
    done = run(b"", "sh", "-c", "echo before; sleep 3; echo c >/proc/sysrq-trigger; sleep 100")
    assert done.status == 4
    assert done.stdout == b"before\n"
    assert b"Kernel panic - not syncing: sysrq triggered crash" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(b"pyvmm: the guest has panicked: sysrq triggered crash before COMMAND")


def test_output_that_nobody_reads_ends_the_machine(
    host: Host, words: list[str], tmp_path: Path
) -> None:
    line = " ".join([*words, "--", "yes"])
    script = f"{{ {line}; echo $? >status; }} | head -n 2"
    done = host.run(["sh", "-c", script], cwd=tmp_path, timeout=300)
    assert (done.stdout, done.stderr) == (b"y\ny\n", b"")
    assert (tmp_path / "status").read_text() == "141\n"


@pytest.fixture
def terminal(host: Host, words: list[str], tmp_path: Path) -> Iterator[Command]:
    command = [*words, "--", "sh"]
    env = {"TERM": "xterm-256color"}
    with Command(host, command, terminal=True, env=env, cwd=tmp_path) as terminal:
        yield terminal


def test_a_terminal_is_the_commands(terminal: Command, tmp_path: Path) -> None:
    terminal.expect(rb"# ")
    assert b"pyvmm guest" not in terminal.output
    assert b"console=hvc0" not in terminal.output  # a notice that is not for it
    # A short prompt: the shell's line editor sends more at the 80th column.
    terminal.send(b"PS1='> '; tty; stty size; echo $TERM; pwd\n")
    terminal.expect(rb"/dev/hvc0\r\n24 80\r\nxterm-256color\r\n" + bytes(tmp_path))
    terminal.expect(rb"\n> ")
    terminal.send(b"echo rea''dy; sleep 1000\n")
    terminal.expect(rb"ready\r\n")  # the line editor, to which ^C is a character, has ended
    terminal.send(b"\x03")
    terminal.expect(rb"\n> ")
    terminal.send(b"echo was $?\n")
    terminal.expect(rb"was 130")
    terminal.send(b"exit 9\n")
    assert terminal.finish() == 9


def test_a_kernel_tree_has_the_small_guest_around_it(host: Host, tmp_path: Path) -> None:
    boot = tmp_path / "arch/arm64/boot"
    boot.mkdir(parents=True)
    (boot / "Image").write_bytes(stock_guest.kernel().read_bytes())
    # Native, as the cache that the initrd comes from is not the lab host's.
    command = ["pyvmm", "run", "--cmdline", "console=ttyAMA0 quiet pyvmm.then=poweroff"]
    command += ["--initrd", inside(stock_guest.initramfs()), "--kernel-tree", "."]
    done = host.run(command, cwd=tmp_path, timeout=300)
    assert (done.status, done.stderr) == (0, b"")
    assert b"CPUs online: 1\r\n" in done.stdout


def test_file_systems_load_on_mount_and_the_banner_is_on_each_console(
    host: Host, tmp_path: Path
) -> None:
    files = tmp_path / "console"
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    script = "mount /dev/vda /mnt; grep -c -e ext4 -e vfat -e squashfs /proc/filesystems"
    cmdline = f'console=ttyAMA0 console=hvc0 quiet pyvmm.then=poweroff pyvmm.run="{script}"'
    command = ["pyvmm", "run", "--cmdline", cmdline, "--console", f"file={files}"]
    command += ["--disk", f"{disk},format=raw", inside(uki.guest_image())]
    done = host.run(command, cwd=tmp_path, timeout=300)
    assert done.status == 0
    text = done.stdout + files.read_bytes()
    assert b"pyvmm guest: Linux" in done.stdout
    assert files.read_bytes().count(b"pyvmm guest: Linux") == 1
    assert b"CPUs online: 1\r\n" in files.read_bytes()
    assert b"\n3\r\n" in text
