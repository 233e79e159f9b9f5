"""Imports point down, as `tests.repository.layers` has it; a module that is not there fails."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

from tests.repository.layers import BESIDE, LAYERS, complaint, part

ROOT = Path(__file__).parents[2] / "vmm"

DEPENDENCIES = {"cffi", "click", "h11", "structlog"}
EXTRAS = {"backports"}
"""May be imported where they are needed, inside a function; never when a module is."""

PLUGINS = {"vmm/library/pytest_plugin.py": "pytest"}
"""Modules that a program loads which brings what they import."""

RUN = "run --host native --memory 64M {image}"
"""Gets past all imports, and to a kernel that is none."""


@dataclass(frozen=True)
class Import:
    """One import: where it is, and what of."""

    line: int
    module: str
    lazy: bool
    typing: bool


def is_module(name: str) -> bool:
    """Tell whether *name* is a module or package of vmm."""
    top, *below = name.split(".")
    base = ROOT.joinpath(*below)
    return top == "vmm" and any(base.with_suffix(end).exists() for end in ("", ".py", ".pyi"))


def imports(source: str, package: str) -> list[Import]:
    """Return the imports in *source*, a module of *package*: in functions, too, and relative."""
    found: list[Import] = []

    def visit(node: ast.AST, *, lazy: bool, typing: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(node.lineno, name.name, lazy, typing) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = [name.name for name in node.names]
            # `from vmm.pci import msix` is an import of the module, if there is one.
            modules = [f"{base}.{name}" if is_module(f"{base}.{name}") else base for name in names]
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


def module(path: Path) -> str:
    """Return the dotted path below vmm of the module at *path*; of a package for its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package(path: Path) -> str:
    return ".".join(("vmm", *path.relative_to(ROOT).parent.parts))


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    me = module(path)
    if not me:  # vmm itself
        return
    for found in imports(path.read_text(), package(path)):
        top, _, below = found.module.partition(".")
        if top == "vmm" and below:
            wrong = complaint(me, below, typing=found.typing)
            assert not wrong, f"{path}:{found.line}: {wrong}"


def arrows() -> dict[str, set[str]]:
    """Return which modules each module imports: also in functions, and for types."""
    names = {f"vmm.{module(path)}".rstrip("."): path for path in MODULES}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        found = imports(path.read_text(), package(path))
        graph[name] = {each.module for each in found if each.module in names} - {name}
    return graph


def test_no_imports_run_in_a_circle() -> None:
    TopologicalSorter(arrows()).prepare()  # raises CycleError, which names the circle


def test_every_exception_is_used() -> None:
    used = {
        (part(module(path)), part(found.module.removeprefix("vmm.")))
        for path in MODULES
        for found in imports(path.read_text(), package(path))
        if found.module.startswith("vmm.") and not found.typing
    }
    assert set(BESIDE) <= used


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_run_time_dependencies_are_few(path: Path) -> None:
    for found in imports(path.read_text(), package(path)):
        top = found.module.split(".")[0]
        allowed = {"vmm", *sys.stdlib_module_names, *DEPENDENCIES, *(EXTRAS if found.lazy else ())}
        allowed.add(PLUGINS.get(str(path.relative_to(ROOT.parent)), "vmm"))
        # compression.zstd is the standard library's from 3.14 on.
        assert found.typing or top in {*allowed, "compression"}, f"{path}:{found.line}: {top}"


def test_the_table_has_nothing_that_is_not_there() -> None:
    for name in (name for layer in LAYERS for name in layer.parts):
        base = ROOT.joinpath(*name.split("."))
        assert any(base.with_suffix(end).exists() for end in ("", ".py", ".pyi")), name


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import vmm.lab.host.qemu", "vmm.lab.host.qemu"),
        ("from vmm import lab", "vmm.lab"),
        ("from vmm.lab import host", "vmm.lab.host"),
        ("from .. import lab", "vmm.lab"),
        ("from ..lab import host", "vmm.lab.host"),
        ("from ..lab.host import Host", "vmm.lab.host"),
        ("def f():\n    from vmm.lab import host", "vmm.lab.host"),
        ("try:\n    import vmm.lab\nexcept ImportError: pass", "vmm.lab"),
        ("importlib.import_module('vmm.lab')", "vmm.lab"),
        ("importlib.import_module(f'vmm.lab.{name}')", "vmm.lab"),
        ("__import__('vmm.lab', fromlist=['host'])", "vmm.lab"),
    ],
)
def test_no_way_to_import_goes_unseen(source: str, module: str) -> None:
    (found,) = imports(source, "vmm.devices")
    assert found.module == module
    assert complaint("kvm", found.module.removeprefix("vmm."))


@pytest.mark.parametrize(
    ("me", "them"),
    [
        ("devices.pl011", "kvm.vm"),
        ("kvm.vm", "pci.msix"),
        ("errors", "kvm.fd"),
        ("lab.host.emulated_host", "machine.machine"),
        ("bus", "cli.run"),
        ("new", "errors"),
    ],
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
import os, sys
arm64 = os.uname_result((*os.uname()[:4], "aarch64"))
os.uname = lambda: arm64
sys.argv = {arguments}
import vmm.cli
try:
    vmm.cli.main()
except SystemExit as done:
    assert done.code in (2, 3), done.code
import vmm.arm64.board, vmm.arm64.image, vmm.terminal.console, vmm.machine.power_cycle""")
    assert "vmm.machine.machine" in loaded
    assert not heavy(loaded)
