"""The description of the requests is OpenAPI, and says what is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from openapi_spec_validator import validate

from tests.control.rig import Rig
from vmm.control.control import Control
from vmm.control.openapi import describe, schema_of


@pytest.fixture
def described() -> dict[str, Any]:
    routes = Control._routes(Control.__new__(Control))
    return describe(routes, "test")


def test_the_description_is_valid_openapi(described: dict[str, Any]) -> None:
    validate(described)


def test_each_request_is_described_once(described: dict[str, Any]) -> None:
    found = {(path, method) for path, methods in described["paths"].items() for method in methods}
    routes = Control._routes(Control.__new__(Control))
    assert found == {(route.path, route.method.lower()) for route in routes}
    assert len(found) == len(routes)


def test_an_answers_members_and_parameters_choices_are_described(
    described: dict[str, Any],
) -> None:
    answer = described["paths"]["/"]["get"]["responses"]["200"]
    schema = answer["content"]["application/json"]["schema"]
    assert schema["properties"]["vcpus"]["items"]["properties"]["exits"] == {"type": "integer"}
    stop = described["paths"]["/stop"]["post"]["requestBody"]
    how = stop["content"]["application/json"]["schema"]["properties"]["how"]
    assert how["enum"] == ["forced", "power-button"]


def test_requests_that_take_descriptors_say_so(tmp_path: Any) -> None:
    @dataclass(frozen=True)
    class Optional:
        one: str | None
        many: dict[str, int]

    rig = Rig(tmp_path / "socket")
    rig.server.close()
    rig._loop.close()
    rig.listening.close()
    assert "SCM_RIGHTS" in describe(rig.routes, "x")["paths"]["/file"]["post"]["description"]
    validate(describe(rig.routes, "x"))
    assert schema_of(Optional)["properties"] == {
        "one": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "many": {"type": "object", "additionalProperties": {"type": "integer"}},
    }
