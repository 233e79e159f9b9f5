"""What the pages say of the code is there: options, modules, commands, links, the picture."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.repository.layers import LAYERS
from vmm.cli import COMMANDS, pyvmm
from vmm.cli.help import find, options, pages, summary
from vmm.errors import UserError

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
OTHERS = [ROOT / name / "README.md" for name in ("cdefs", "examples", "scripts", "tests")]
ALL = [README, *pages().values(), *OTHERS]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
MODULE = re.compile(r"`(?:vmm/)?((?:[a-z0-9_]+/)+[a-z0-9_]+\.(?:py|c|h|json|patch|svg))`")


def every_option() -> set[str]:
    """Return every long option of the command line, in whatever command."""
    found: set[str] = set()

    def walk(command: click.Command) -> None:
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                found.update(name for name in parameter.opts if name.startswith("--"))
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                below = command.get_command(click.Context(command), name)
                assert below
                walk(below)

    walk(pyvmm)
    return found - {"--help"}


@pytest.mark.parametrize("option", sorted(every_option()))
def test_an_option_is_documented_on_exactly_one_page(option: str) -> None:
    documented = [topic for topic, page in pages().items() if option in options(page)]
    assert len(documented) == 1, documented


def test_pages_document_no_option_that_is_not_there() -> None:
    for topic, page in pages().items():
        assert options(page) <= every_option(), topic


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_every_package_has_a_page() -> None:
    without = {path.parent.name for path in (ROOT / "vmm").glob("*/__init__.py")} - set(pages())
    assert not without


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    for link in LINK.findall(text):
        assert (page.parent / link).exists(), link
    for name in MODULE.findall(text):
        places = (ROOT / name, ROOT / "vmm" / name, page.parent / name)
        assert any(place.exists() for place in places), name


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_pages_lines_fit_a_terminal(page: Path) -> None:
    code = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        code ^= line.startswith("```")
        table = line.lstrip().startswith("|")
        assert code or table or "](" in line or len(line) <= 112, f"{page}:{number}"


def test_every_part_of_the_layer_table_says_what_it_is_for() -> None:
    for layer in LAYERS:
        for name, job in layer.parts.items():
            assert job, name


def test_help_finds_pages_by_package_and_by_option() -> None:
    known = pages()
    assert find("coherence") == find("vmm/coherence".removeprefix("vmm/")) == known["coherence"]
    assert find("block") == known["virtio/block"]
    assert find("--disk") == find("disk") == known["virtio/block"]
    assert find("vmm") == known["vmm"]


def test_help_tells_what_was_meant() -> None:
    with pytest.raises(UserError, match="help coherense: there is no such page") as caught:
        find("coherense")
    assert "coherence" in caught.value.hint
    with pytest.raises(UserError) as caught:
        find("zzz")
    assert "lists the topics" in caught.value.hint


def test_every_page_begins_with_a_sentence_for_the_overview() -> None:
    for topic, page in pages().items():
        said = summary(page)
        assert 20 <= len(said) <= 240, (topic, said)
        assert not said.startswith(("|", "`", "#")), (topic, said)


def test_help_prints_a_page_and_the_topics() -> None:
    def told(*arguments: str) -> str:
        command = [sys.executable, "-c", "from vmm.cli import main; main()", "help", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert told("terminal") == pages()["terminal"].read_text()
    assert set(pages()) <= set(re.findall(r"^  (\S+) ", told(), re.MULTILINE))
    assert told("--escape") == told("terminal")


def test_the_commands_overview_names_every_command() -> None:
    text = pages()["cli"].read_text()
    for command in COMMANDS:
        assert re.search(rf"`pyvmm {command}\b", text), command


def modules(page: Path) -> list[Path]:
    """Return the programs of the package of *page*, and of its subpackages without a page."""
    found = [
        path
        for path in page.parent.rglob("*")
        if path.suffix in {".py", ".sh"} and path.name != "__init__.py"
    ]
    owners = {
        path: next(up for up in path.parents if (up / "README.md").exists()) for path in found
    }
    return sorted(path for path, owner in owners.items() if owner == page.parent)


def mapped(page: Path) -> list[Path]:
    """Return the programs in the source map of *page*: the first cells of its rows.

    A name without a folder is in the folder of the name before it in its row.
    """
    found = []
    for line in page.read_text().partition("## Source map\n")[2].splitlines():
        folder = page.parent
        for name in re.findall(r"`([\w/]+\.(?:py|sh))`", line.split("|")[1] if "|" in line else ""):
            path = page.parent / name if "/" in name else folder / name
            folder = path.parent
            found.append(path)
    return sorted(path for path in found if path.name != "__init__.py")


@pytest.mark.parametrize("topic", sorted(pages()))
def test_a_source_map_names_each_module_once(topic: str) -> None:
    page = pages()[topic]
    assert mapped(page) == modules(page)
