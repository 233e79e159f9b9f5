"""Describe routes as OpenAPI 3.1 does (https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Final, Union, get_args, get_origin, get_type_hints

from vmm.control.routes import JSON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.control.routes import Parameter, Route

SCALARS: Final = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}
"""Types, as JSON Schema calls them."""
ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "string", "description": "What is wrong."},
        "hint": {"type": "string", "description": "What to do."},
    },
}
STATUSES: Final = {
    "400": "The request is not one of these.",
    "409": "The machine cannot do it now.",
    "500": "The host or pyvmm failed.",
    "503": "The machine has ended, or too many clients are connected.",
}


def describe(routes: Sequence[Route], name: str) -> dict[str, Any]:
    """Return the description of *routes*, the machine *name*'s."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"pyvmm machine {name}",
            "version": "1",
            "description": "Over the machine's Unix socket, for its user and root alone.",
        },
        "paths": paths,
        "components": {"schemas": {"Error": ERROR}},
    }


def _operation(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": route.summary,
        "operationId": "-".join([route.method.lower(), *route.path.strip("/").split("/")]),
        "responses": {**_success(route), **{code: _error(STATUSES[code]) for code in STATUSES}},
    }
    if route.parameters:
        schema = {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                name: _parameter(parameter) for name, parameter in route.parameters.items()
            },
        }
        found["requestBody"] = {"content": {JSON: {"schema": schema}}}
    if route.fds:
        found["description"] = (
            f"Takes {route.fds} file descriptor, passed with the first bytes of the request "
            "(SCM_RIGHTS): the machine's process opens no path."
        )
    return found


def _success(route: Route) -> dict[str, Any]:
    if route.protocol:
        text = f"The connection is {route.protocol}, both ways, until one side hangs up."
        return {"101": {"description": text}}
    if isinstance(route.gives, str):
        schema: dict[str, Any] = {"type": "string"}
        return {"200": {"description": "Done.", "content": {route.gives: {"schema": schema}}}}
    return {"200": {"description": "Done.", "content": {JSON: {"schema": schema_of(route.gives)}}}}


def _error(text: str) -> dict[str, Any]:
    reference = {"$ref": "#/components/schemas/Error"}
    return {"description": text, "content": {JSON: {"schema": reference}}}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": SCALARS[type(parameter.default)],
        "description": parameter.what,
        "default": parameter.default,
    }
    if parameter.choices:
        found["enum"] = list(parameter.choices)
    return found


def schema_of(kind: Any) -> dict[str, Any]:
    """Return the JSON Schema of a type as `vmm.typed_json` writes it."""
    if get_origin(kind) in (Union, types.UnionType):
        return {"anyOf": [schema_of(one) for one in get_args(kind)]}
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        names = [field.name for field in fields(kind)]
        return {
            "type": "object",
            "required": names,
            "properties": {name: schema_of(hints[name]) for name in names},
        }
    if kind in SCALARS:
        return {"type": SCALARS[kind]}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": schema_of(get_args(kind)[0])}
    assert get_origin(kind) is not None, kind
    return {"type": "object", "additionalProperties": schema_of(get_args(kind)[1])}
