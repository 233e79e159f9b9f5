"""``pyvmm help``: the packages' own pages, in the terminal.

A page is the README.md of a package. A topic names one by its path below vmm (virtio/block), by
the last part of that (block), or by an option that the page documents (--disk).
"""

from __future__ import annotations

import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Final

import click

from vmm.errors import UserError

ROOT: Final = Path(__file__).parents[1]

OPTION: Final = re.compile(r"^(?:[|*-] *|\| *)?`(--[a-z][a-z-]*)", re.MULTILINE)
"""An option where it is documented: at the start of a line, of a list item or of a table row."""

FENCE: Final = "```"


def pages() -> dict[str, Path]:
    """Return each page by its topic. The page of vmm itself is "vmm"."""
    found = sorted(ROOT.rglob("README.md"))
    return {path.parent.relative_to(ROOT).as_posix().replace(".", "vmm", 1): path for path in found}


def options(page: Path) -> set[str]:
    """Return the options that *page* documents, such as ``--disk``."""
    return set(OPTION.findall(page.read_text()))


def find(topic: str) -> Path:
    """Return the page for *topic*. Raises `UserError`, which names the topics that come close."""
    known = pages()
    wanted = topic.strip("/")
    if page := known.get(wanted):
        return page
    by_name = {name.rpartition("/")[2]: page for name, page in known.items()}
    if page := by_name.get(wanted):
        return page
    by_option = {option: page for page in known.values() for option in options(page)}
    if page := by_option.get(f"--{wanted.lstrip('-')}"):
        return page
    near = get_close_matches(wanted, [*known, *by_name, *by_option], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`pyvmm help` lists the topics"
    raise UserError(f"help {topic}: there is no such page", hint)


def summary(page: Path) -> str:
    """Return the first sentence of *page*."""
    paragraphs = page.read_text().split("\n\n")
    text = next(part for part in paragraphs if not part.startswith("#"))
    return re.split(r"(?<=[.])\s", " ".join(text.split()), maxsplit=1)[0]


def overview() -> str:
    """Return one line for each topic."""
    formatter = click.HelpFormatter(width=100)
    rows = [(topic, summary(page)) for topic, page in pages().items()]
    with formatter.section("Topics, for `pyvmm help TOPIC` or `pyvmm help --OPTION`"):
        formatter.write_dl(rows)
    return formatter.getvalue().rstrip()


def styled(text: str) -> str:
    """Return *text*, Markdown, with its headings in bold."""
    lines, code = [], False
    for line in text.splitlines():
        code ^= line.startswith(FENCE)
        heading = line.startswith("#") and not code
        lines.append(click.style(line.lstrip("# "), bold=True) if heading else line)
    return "\n".join(lines)


@click.command("help", context_settings={"ignore_unknown_options": True})
@click.argument("topic", required=False)
def help_(topic: str | None) -> None:
    """Show the page of a package, or the page that documents an option.

    TOPIC is a package (virtio/block, or block) or an option (--disk). Without one, list them.
    """
    if topic is None:
        click.echo(overview())
    elif sys.stdout.isatty():
        click.echo_via_pager(styled(find(topic).read_text()))
    else:
        click.echo(find(topic).read_text(), nl=False)
