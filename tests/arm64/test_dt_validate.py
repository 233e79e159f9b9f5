"""The device tree checker: it finds errors, and only errors."""

from __future__ import annotations

import pytest

from tests.arm64.dt_validate import validate
from vmm.fdt import Node, Value, dumps, reg, u32

pytestmark = pytest.mark.lab  # its bindings are downloaded

CLOCK = Node(
    "clock-24000000",
    {"compatible": "fixed-clock", "#clock-cells": 0, "clock-frequency": 24_000_000, "phandle": 1},
)
MEMORY = Node("memory@40000000", {"device_type": "memory", "reg": reg((0x4000_0000, 1 << 28))})
CPUS = Node("cpus", {"#address-cells": 1, "#size-cells": 0})


def board(*nodes: Node) -> bytes:
    properties: dict[str, Value] = {
        "compatible": "linux,dummy-virt",
        "model": "test",
        "#address-cells": 2,
        "#size-cells": 2,
    }
    return dumps(Node("", properties, [MEMORY, CPUS, CLOCK, *nodes]))


def test_nothing_is_wrong_with_a_correct_tree() -> None:
    assert validate(board()) == []


def test_a_name_that_a_binding_forbids_is_found() -> None:
    rtc = Node(
        "pl031@9010000",
        {
            "compatible": ["arm,pl031", "arm,primecell"],
            "reg": reg((0x0901_0000, 0x1000)),
            "clocks": u32(1),
            "clock-names": "apb_pclk",
        },
    )
    (finding,) = validate(board(rtc))
    assert finding.startswith("/pl031@9010000: $nodename.0: 'pl031@9010000' does not match '^rtc")


def test_a_missing_property_is_found() -> None:
    findings = validate(board(Node("psci", {"compatible": "arm,psci-1.0"})))
    assert any("'method' is a required property" in finding for finding in findings)


def test_a_device_without_a_binding_is_found() -> None:
    (finding,) = validate(board(Node("thing", {"compatible": "acme,thing"})))
    assert "failed to match any schema with compatible: ['acme,thing']" in finding


def test_a_device_documented_in_prose_is_not_complained_about() -> None:
    pvpanic: dict[str, Value] = {"compatible": "qemu,pvpanic-mmio", "reg": reg((0x0902_0000, 2))}
    assert validate(board(Node("pvpanic@9020000", pvpanic))) == []
