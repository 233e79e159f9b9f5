"""Machines as TOML files, and as programs."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vmm.cli import run as command
from vmm.cli.run import run
from vmm.errors import UserError

OPTIONS = [
    "Image",
    "--memory",
    "2G",
    "--cpus",
    "4",
    "--disk",
    "a.img,ro",
    "--disk",
    "b.img",
    "--net",
    "user",
    "--rng",
    "--timeout",
    "2.5",
    "--no-reboot",
    "--host",
    "native",
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, object]]:
    """``asked(word...)`` returns what ``pyvmm run WORD...`` would run."""

    def asked(*words: str) -> dict[str, object]:
        found: list[dict[str, object]] = []
        monkeypatch.setattr(command, "is_native", lambda _: True)

        def run_machine(**request: object) -> int:
            found.append({**request, "events": None})
            return 0

        monkeypatch.setattr(command, "run_machine", run_machine)
        done = CliRunner().invoke(run, [*words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return found[0]

    return asked


def printed(*words: str) -> str:
    done = CliRunner().invoke(run, words, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_what_print_config_writes_is_the_same_machine(
    asked: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    file = tmp_path / "machine.toml"
    file.write_text(printed(*OPTIONS, "--print-config"))
    assert asked(str(file)) == asked(*OPTIONS)
    assert printed(str(file), "--print-config") == file.read_text()


def test_text_of_any_kind_survives(asked: Callable[..., dict[str, object]], tmp_path: Path) -> None:
    words = ["Im\"age'\\ ä", "--cmdline", 'a="b" \\ \t\x7f ü', "--host", "native"]
    file = tmp_path / "machine.toml"
    file.write_text(printed(*words, "--print-config"))
    assert asked(str(file)) == asked(*words)


def test_the_command_line_is_stronger(
    asked: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    file = tmp_path / "machine.toml"
    file.write_text('image = "Image"\ncpus = 2\nno-reboot = true\ndisk = "one.img"\n')
    assert asked("--cpus", "4", str(file), "--disk", "two.img") == asked(
        "Image", "--cpus", "4", "--no-reboot", "--disk", "two.img"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("memroy = 2", "memroy: pyvmm run has no such option"),
        ("rng = 1", "rng: 1 is not true or false"),
        ("memory = true", "memory: True is not text or a number"),
        ("memory = [2]", r"memory: \[2\] is not text or a number"),
        ("disk = [[2]]", r"disk: \[2\] is not text"),
        ("[disk]\npath = 1", "disk: {'path': 1} is not text"),
        ("print_config = true", "print_config: pyvmm run has no such option"),
        ("memory = ", "no TOML: Invalid value"),
        ("\udcff", "no TOML"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "machine.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=complaint) as found:
        CliRunner().invoke(run, [str(file)], catch_exceptions=False)
    assert "\n" not in str(found.value)


def test_a_file_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match=r"none\.toml: No such file or directory"):
        CliRunner().invoke(run, ["none.toml"], catch_exceptions=False)


# --- --print-python -------------------------------------------------------------------------------


def test_a_program_has_the_options_and_the_place() -> None:
    text = printed("Image", "--memory", "2G", "--rng", "--disk", "a b.img", "--host", "lab:vfio",
                   "--print-python")  # fmt: skip
    ast.parse(text)
    assert 'with vmm.Lab("vfio") as lab:' in text
    assert 'lab.Machine("Image", memory="2G", disk="a b.img", rng=True)' in text
    assert len(text.splitlines()) <= 11


def test_many_options_have_a_line_each() -> None:
    words = [word for word in OPTIONS if word not in {"--timeout", "2.5"}]
    text = printed(*words, "--print-python")
    ast.parse(text)
    assert '    disk=["a.img,ro", "b.img"],\n' in text
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--timeout", "3"], "--timeout has no counterpart"),
        (["--kernel-tree", "/"], "--kernel-tree has no counterpart"),
        (["--", "ls"], "a program has no COMMAND"),
    ],
)
def test_what_a_program_cannot_have_is_said(words: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        CliRunner().invoke(run, ["--print-python", *words], catch_exceptions=False)


def test_every_option_is_somewhere() -> None:
    """No option of a machine is lost on the way to a file: all have a long name."""
    for parameter in run.params:
        if isinstance(parameter, click.Option):
            assert any(each.startswith("--") for each in parameter.opts)
