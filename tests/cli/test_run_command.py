"""``pyvmm run IMAGE -- COMMAND`` and ``--kernel-tree``: what becomes of the words."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vmm.cli import kernel_tree, place, pyvmm
from vmm.cli.run import run as run_command
from vmm.config import MachineConfig, codec
from vmm.config.command import CommandConfig, check_command, consoles, shares
from vmm.config.console import ConsoleConfig
from vmm.errors import UserError
from vmm.lab.host.relay import Joint


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., MachineConfig]:
    """``configure(word...)`` is the configuration that arrives in the lab host."""
    sent: list[str] = []

    def run_there(
        host: str,
        words: list[str],
        packages: list[str],
        joints: list[Joint],
        *,
        writable: list[Path],
    ) -> int:
        assert writable
        assert host == "lab"
        assert not joints
        assert packages == ["virtiofsd"]
        sent.append(words[2])
        return 7

    monkeypatch.setattr("vmm.cli.run.run_there", run_there)
    monkeypatch.setattr("vmm.cli.run._check_files", lambda config: None)
    monkeypatch.setattr(place, "visible", lambda path: path)
    monkeypatch.chdir(tmp_path)

    def configure(*words: str) -> MachineConfig:
        done = CliRunner().invoke(pyvmm, ["run", "--host", "lab", *words])
        assert done.exit_code == 7, done.output
        config: MachineConfig = codec.loads(sent.pop())["config"]
        return config

    return configure


def test_words_after_the_dashes_are_the_command_whatever_they_look_like(
    configure: Callable[..., MachineConfig], tmp_path: Path
) -> None:
    words = ("sh", "-c", "exit 7", "--", "--cpus", "\udcff")
    config = configure("guest.img", "-c", "2", "--", *words)
    assert (config.image, config.cpus) == (Path("guest.img"), 2)
    assert config.command == CommandConfig(words, str(tmp_path))
    assert not config.reboot
    assert [share.tag for share in config.shares] == ["pyvmm.directory"]
    names = [console.name for console in config.consoles]
    assert names == ["pyvmm.stdin", "pyvmm.stdout", "pyvmm.stderr", "pyvmm.status"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.img", "--"], "no COMMAND follows"),
        (["--firmware", "f", "--", "ls"], "only the small guest runs it"),
        (["a.img", "--console", "stdio", "--", "ls"], "COMMAND has standard input"),
        (["--kernel-tree", "/nowhere", "--", "ls"], "there is no arch/arm64/boot/Image"),
        (["--kernel-tree", "/nowhere", "a.img"], "leave IMAGE out"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], message: str) -> None:
    done = CliRunner().invoke(pyvmm, ["run", "--host", "lab", *words])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)


def test_on_a_terminal_hvc0_is_the_commands() -> None:
    ports = consoles(CommandConfig(("ls",), "/", "xterm"))
    assert ports == (ConsoleConfig("stdio"), ConsoleConfig("pipe", name="pyvmm.status"))


def test_the_guests_own_directories_are_not_hidden() -> None:
    assert shares(CommandConfig(("ls",), "/")) == ()
    assert shares(CommandConfig(("ls",), "/usr/src"))[0].path == Path("/usr/src")
    with pytest.raises(UserError, match="current directory /usr would hide the guest's own"):
        shares(CommandConfig(("ls",), "/usr"))


def test_the_usage_line_has_the_command() -> None:
    assert "[IMAGE] [-- COMMAND...]" in CliRunner().invoke(run_command, ["--help"]).output


# --- --kernel-tree ----------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / kernel_tree.BOOT).mkdir(parents=True)
    return tmp_path


def test_the_newest_image_of_a_tree_is_taken(tree: Path) -> None:
    for age, name in enumerate(["Image.gz", "Image", "Image.xz"]):
        path = tree / kernel_tree.BOOT / name
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    assert kernel_tree.image(tree).name == "Image.gz"
    assert stat.S_ISREG(kernel_tree.image(tree).stat().st_mode)


NEEDED = (*kernel_tree.ALWAYS, "SERIAL_AMBA_PL011_CONSOLE", "VIRTIO_MMIO", "VIRTIO_CONSOLE")


def config(**parts: Any) -> MachineConfig:
    command = CommandConfig(("ls",), "/d")
    return MachineConfig(
        image=Path("Image"),
        command=command,
        consoles=(ConsoleConfig("pipe", name="pyvmm.status"),),
        shares=shares(command),
        **parts,
    )


def test_what_a_kernel_lacks_is_said(tree: Path) -> None:
    lines = [f"CONFIG_{name}=y\n" for name in NEEDED if name != "VIRTIO_CONSOLE"]
    (tree / ".config").write_text("".join(lines) + "CONFIG_VIRTIO_CONSOLE=m\n")
    with pytest.raises(UserError) as error:
        kernel_tree.check(tree, config())
    assert str(error.value) == (
        f"--kernel-tree {tree}: the kernel has no VIRTIO_CONSOLE, VIRTIO_FS built in (the small "
        "guest has no modules of it); scripts/config -e VIRTIO_CONSOLE -e VIRTIO_FS, and build "
        "again; called in /, nothing is shared"
    )


def test_a_kernel_with_everything_or_without_a_config_is_tried(tree: Path) -> None:
    kernel_tree.check(tree, config())
    (tree / ".config").write_text("".join(f"CONFIG_{n}=y\n" for n in (*NEEDED, "VIRTIO_FS")))
    kernel_tree.check(tree, config())
    with pytest.raises(UserError, match="has no VIRTIO_PCI built in"):
        kernel_tree.check(tree, config(transport="pci"))


def test_run_takes_the_kernel_of_a_tree_and_checks_it(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / kernel_tree.BOOT / "Image").touch()
    (tree / ".config").write_text("CONFIG_ARM64=y\n")
    monkeypatch.setattr(kernel_tree, "initrd", lambda: Path("initrd"))
    done = CliRunner().invoke(pyvmm, ["run", "--host", "lab", "--kernel-tree", str(tree)])
    assert "the kernel has no BLK_DEV_INITRD, BINFMT_ELF" in str(done.exception)


def test_a_command_takes_an_image_and_no_terminal_of_another_port() -> None:
    command = CommandConfig(("ls",), "/d")
    check_command(command, Path("Image"), config().consoles)
    with pytest.raises(UserError, match="only the small guest runs it"):
        check_command(command, None, ())
    with pytest.raises(UserError, match="COMMAND has standard input and output"):
        check_command(command, Path("Image"), (ConsoleConfig("stdio"),))
    check_command(command._replace(terminal="vt100"), Path("Image"), (ConsoleConfig("stdio"),))
