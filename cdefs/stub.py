"""Write ``vmm/_native.pyi``: the types of `vmm._native`, for mypy.

    python cdefs/stub.py

Run it after the extension has been rebuilt. It asks the extension itself, so the types are those
that the compiler saw. cffi's functions take no keywords and do not know their parameters' names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

STUB = Path(__file__).parents[1] / "vmm" / "_native.pyi"

HEADER = """\
# Written by cdefs/stub.py from the built extension: do not edit.
from collections.abc import Callable
from typing import Any

class _FFI:
    CData: type[Any]
    NULL: Any
    def new(self, cdecl: str, init: object = ...) -> Any: ...
    def new_allocator(self, *, should_clear_after_alloc: bool) -> Any: ...
    def cast(self, cdecl: str, source: object) -> Any: ...
    def gc(self, cdata: Any, destructor: object) -> Any: ...
    def from_buffer(self, cdecl: str, buffer: object, require_writable: bool = ...) -> Any: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def string(self, cdata: Any, maxlen: int = ...) -> bytes: ...
    def sizeof(self, cdecl: object) -> int: ...
    def offsetof(self, cdecl: str, *fields: str | int) -> int: ...
    def addressof(self, cdata: Any, *fields: str | int) -> Any: ...
    def typeof(self, cdecl: object) -> Any: ...
    def memmove(self, dest: Any, src: Any, n: int) -> None: ...
    def list_types(self) -> tuple[list[str], list[str], list[str]]: ...

"""


def _type(ctype: Any) -> str:
    """Return the Python type of a parameter or result: the C has integers, pointers and void."""
    if ctype.kind == "void":
        return "None"
    return "int" if ctype.kind in {"primitive", "enum"} else "Any"


def _members() -> Iterator[str]:
    for name in sorted(dir(lib)):
        member = getattr(lib, name)
        if isinstance(member, int):
            yield f"{name}: int"
            continue
        function = ffi.typeof(member)
        parameters = ", ".join(_type(parameter) for parameter in function.args)
        yield f"{name}: Callable[[{parameters}], {_type(function.result)}]"


def text() -> str:
    """Return what the stub is to say."""
    members = "".join(f"    {member}\n" for member in _members())
    return f"{HEADER}class _Lib:\n{members}\nffi: _FFI\nlib: _Lib\n"


if __name__ == "__main__":
    STUB.write_text(text())
