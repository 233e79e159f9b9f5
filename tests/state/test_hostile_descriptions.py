"""A description that somebody changed is refused by name, or compared; nothing else happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.state.golden import DIRECTORY, golden
from vmm.errors import UserError
from vmm.state import baseline
from vmm.state.host_description import HostDescription
from vmm.state.labels import feature_file
from vmm.state.verdict import moves

TEXTS = [(DIRECTORY / f"{name}.json").read_text() for name in ("gh200", "legacy-gh200-nofwb")]
OTHER = golden("fwb")

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["0x0", "0xffffffffffffffff", "GICv2", "SVE", "PTRAUTH", "mainline"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return each container in *value* with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], (dict, list)):
            found += places(value[key])
    return found


@st.composite
def changed(draw: st.DrawFn) -> Any:
    """Draw a description with one to three members changed, renamed or added."""
    value = json.loads(draw(st.sampled_from(TEXTS)))
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(places(value)))
        if draw(st.booleans()):
            container[key] = draw(values)
        elif isinstance(container, dict):
            container[draw(st.text(max_size=8))] = container.pop(key)
        else:
            container.append(container[key])
    return value


def read(path: Path, data: bytes) -> HostDescription | None:
    """Return the description in *data*, by way of *path*; None: it was refused by name."""
    path.write_bytes(data)
    try:
        return HostDescription.read(path)
    except UserError as error:
        refusal = str(error)
    assert refusal.startswith(str(path))
    return None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changed())
def test_a_changed_description_is_refused_by_name_or_compared(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.json"
    host = read(path, json.dumps(value).encode())
    if host is None:
        return
    for move in moves([("changed", host), ("other", OTHER)]):
        assert list(move.lines())
        json.dumps(move.as_json())
    baseline.text(baseline.common([host, OTHER]))
    baseline.text(baseline.common([OTHER, host]))
    feature_file(host)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 4000), st.binary(max_size=4))
def test_a_cut_or_overwritten_file_is_refused_by_name_or_read(
    tmp_path_factory: pytest.TempPathFactory, at: int, instead: bytes
) -> None:
    data = TEXTS[0].encode()
    path = tmp_path_factory.getbasetemp() / "cut.json"
    read(path, data[:at])
    read(path, data[:at] + instead + data[at + len(instead) :])


def test_a_register_that_there_is_not_is_named(tmp_path: Path) -> None:
    value = json.loads(TEXTS[0])
    value["cpu"]["registers"]["ID_AA64XXX_EL1"] = "0x0"
    (tmp_path / "host.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"cpu\.registers: ID_AA64XXX_EL1 is no register"):
        HostDescription.read(tmp_path / "host.json")
