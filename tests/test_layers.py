"""Imports point down. The table is the architecture; a module that is not in it fails."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "vmm"

LAYERS = [  # lowest first
    {"errors", "closing", "config", "events", "_native", "thread"},
    {"kvm", "memory", "bus", "irq", "fdt", "loop", "progress", "daemon"}
    | {"device_file", "image_lock", "netlink", "tap"}
    | {"console", "terminal", "escape", "outlet", "chardev"},
    {"devices", "virtio", "vhost", "pci"},
    {"cpu", "arm64", "coherence", "vfio"},
    {
        "machine",
        "power",
        "space",
        "backplane",
        "device_memory",
        "probe",
        "census",
        "state",
        "lab",
        "pmem",
        "flash",
    }
    | {"rootcomplex", "msi", "doorbells", "passthrough", "network"},
    {"cli"},
]
BESIDE = {
    "config": {"errors"},
    "thread": {"errors"},
    "chardev": {"terminal"},
    "console": {"terminal", "escape", "outlet"},
    "coherence": {"arm64"},
    "virtio": {"pci"},
    "vhost": {"virtio"},
    "machine": {"power", "space", "backplane", "rootcomplex", "passthrough", "flash"},
    "backplane": {"doorbells", "network"},
    "tap": {"device_file", "netlink"},
    "rootcomplex": {"msi"},
    "passthrough": {"msi", "device_memory"},
    "space": {"device_memory", "pmem"},
    "census": {"device_memory"},
}
"""Within a layer all others are strangers; they may name each other's types."""

NEVER = {noun: {"kvm", "arm64"} for noun in ("devices", "virtio", "vhost", "pci")}
"""Downwards, but still not: chips can be tested on any machine, in milliseconds."""

PLANNED = {"state"}

DEPENDENCIES = {"cffi", "click", "structlog"}
EXTRAS = {"backports"}
"""May be imported where they are needed, inside a function; never when a module is."""

RUN = "run --host native --memory 64M {image}"
"""Gets past all imports, and to a kernel that is none."""


@dataclass(frozen=True)
class Import:
    """One import: where it is, and what of."""

    line: int
    module: str
    lazy: bool
    typing: bool


def imports(source: str, package: str) -> list[Import]:
    """Return the imports in *source*, a module of *package*: in functions, too, and relative."""
    found: list[Import] = []

    def visit(node: ast.AST, *, lazy: bool, typing: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(node.lineno, name.name, lazy, typing) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = [name.name for name in node.names]
            # `from vmm import errors` is an import of vmm.errors.
            modules = [f"vmm.{name}" for name in names] if base == "vmm" else [base]
            found.extend(Import(node.lineno, module, lazy, typing) for module in modules)
        elif isinstance(node, ast.Call) and getattr(
            node.func, "attr", getattr(node.func, "id", "")
        ) in {"import_module", "__import__"}:
            match node.args[0]:
                case ast.Constant(value=str(module)) if not module.startswith("."):
                    found.append(Import(node.lineno, module, lazy=True, typing=False))
                case ast.JoinedStr(values=[ast.Constant(value=str(module)), *_]):
                    found.append(Import(node.lineno, module.rstrip("."), lazy=True, typing=False))
        in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.iter_child_nodes(node):
            visit(child, lazy=lazy or in_function, typing=typing or for_types)

    visit(ast.parse(source), lazy=False, typing=False)
    return found


def rank(noun: str) -> int:
    for level, nouns in enumerate(LAYERS):
        if noun in nouns:
            return level
    pytest.fail(f"vmm.{noun} is in no layer: where does it belong?")


def complaint(me: str, them: str, *, typing: bool = False) -> str | None:
    """Return what is wrong with *me* importing *them*, both parts of vmm; None if nothing is."""
    if them in NEVER.get(me, ()):
        return f"{me} must never import {them}"
    if rank(them) > rank(me):
        return f"{me} must not import {them}, which is above it"
    if rank(them) == rank(me) and not (typing or them == me or them in BESIDE.get(me, ())):
        return f"{me} must not import {them}, which is beside it"
    return None


def noun(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def package(path: Path) -> str:
    return ".".join(("vmm", *path.relative_to(ROOT).parent.parts))


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    me = noun(path)
    for found in imports(path.read_text(), package(path)):
        top, _, below = found.module.partition(".")
        if top == "vmm" and below:
            wrong = complaint(me, below.split(".")[0], typing=found.typing)
            assert not wrong, f"{path}:{found.line}: {wrong}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_run_time_dependencies_are_few(path: Path) -> None:
    for found in imports(path.read_text(), package(path)):
        top = found.module.split(".")[0]
        allowed = {"vmm", *sys.stdlib_module_names, *DEPENDENCIES, *(EXTRAS if found.lazy else ())}
        # compression.zstd is the standard library's from 3.14 on.
        assert found.typing or top in {*allowed, "compression"}, f"{path}:{found.line}: {top}"


def test_the_table_has_nothing_that_is_not_there() -> None:
    there = {path.stem for path in ROOT.iterdir() if path.suffix in {"", ".py", ".pyi"}}
    assert set().union(*LAYERS) - PLANNED <= there


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import vmm.lab.host", "vmm.lab.host"),
        ("from vmm import lab", "vmm.lab"),
        ("from vmm.lab import host", "vmm.lab"),
        ("from .. import lab", "vmm.lab"),
        ("from ..lab import host", "vmm.lab"),
        ("from ..lab.host import Host", "vmm.lab.host"),
        ("def f():\n    from vmm.lab import host", "vmm.lab"),
        ("try:\n    import vmm.lab\nexcept ImportError: pass", "vmm.lab"),
        ("importlib.import_module('vmm.lab')", "vmm.lab"),
        ("importlib.import_module(f'vmm.lab.{name}')", "vmm.lab"),
        ("__import__('vmm.lab', fromlist=['host'])", "vmm.lab"),
    ],
)
def test_no_way_to_import_goes_unseen(source: str, module: str) -> None:
    (found,) = imports(source, "vmm.devices")
    assert found.module == module
    assert complaint("devices", found.module.split(".")[1])


@pytest.mark.parametrize(
    ("me", "them"),
    [("devices", "kvm"), ("kvm", "memory"), ("errors", "kvm"), ("lab", "machine"), ("bus", "cli")],
)
def test_what_the_table_forbids_is_found(me: str, them: str) -> None:
    assert complaint(me, them)


def modules_after(code: str) -> set[str]:
    """Return the names of the modules that a Python has loaded after *code*."""
    code += "\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def heavy(modules: set[str]) -> set[str]:
    return {name for name in modules if name.startswith("vmm.lab") or name == "structlog"}


def test_the_command_line_itself_needs_neither_lab_nor_structlog() -> None:
    loaded = modules_after("import vmm.cli")
    assert "click" in loaded
    assert not heavy(loaded)


def test_run_needs_neither_lab_nor_structlog(tmp_path: Path) -> None:
    """Run gets as far as it can on any machine; what it imports only later is imported here."""
    image = tmp_path / "image"
    image.write_bytes(bytes(100))
    arguments = ["pyvmm", *RUN.format(image=image).split()]
    loaded = modules_after(f"""\
import sys
sys.argv = {arguments}
import vmm.cli
try:
    vmm.cli.main()
except SystemExit as done:
    assert done.code in (2, 3), done.code
import vmm.arm64.board, vmm.arm64.image, vmm.console, vmm.cpu, vmm.machine, vmm.power""")
    assert "vmm.machine" in loaded
    assert not heavy(loaded)
