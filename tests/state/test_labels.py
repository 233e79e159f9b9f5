"""Feature files are what Node Feature Discovery reads, and labels are what Kubernetes takes."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.state.golden import golden, names
from vmm.coherence.capability import Generation, Support
from vmm.state.labels import PREFIX, feature_file, labels

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
"""Of a label without its namespace, and of a value (Kubernetes, "Labels and Selectors")."""

NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
MOST = 64 << 10
"""NFD ignores a larger file."""


def parse(text: str, now: datetime) -> dict[str, str]:
    """Return the labels that nfd-worker makes of a feature file, by its documented grammar."""
    assert len(text) < MOST
    found: dict[str, str] = {}
    expiry: datetime | None = None
    for line in text.splitlines():
        if line.startswith("# +"):
            key, _, value = line.removeprefix("# +").partition("=")
            assert key == "expiry-time", f"nfd-worker knows no directive {key}"
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)", value), value
            expiry = datetime.fromisoformat(value)
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            namespace, slash, name = key.partition("/")
            assert slash, f"{key} has no namespace"
            assert len(namespace) <= 253
            assert NAMESPACE.fullmatch(namespace)
            # kubernetes.io is refused but for NFD's own part.
            assert namespace == "feature.node.kubernetes.io"
            assert NAME.fullmatch(name), name
            assert equals
            assert NAME.fullmatch(value), value
            if expiry is None or expiry > now:
                assert key not in found
                found[key] = value
    return found


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("profile", names())
def test_a_feature_file_is_as_nfd_documents(profile: str) -> None:
    host = golden(profile)
    assert parse(feature_file(host), NOW) == labels(host)
    assert labels(host)[f"{PREFIX}fwb"] == ("false" if "nofwb" in profile else "true")


def test_a_feature_file_expires_when_it_is_to() -> None:
    text = feature_file(golden("fwb"), NOW.timestamp() + 900.7)
    assert text.startswith("# +expiry-time=2026-01-02T03:19:05Z\n")
    assert parse(text, NOW) == labels(golden("fwb"))
    assert parse(text, datetime(2026, 1, 2, 3, 19, 6, tzinfo=UTC)) == {}


@pytest.mark.parametrize(
    ("profile", "word"),
    [
        ("fwb", "mainline"),
        ("nofwb", "no"),
        ("rfc", "rfc"),
        ("rfc-nofwb", "no"),
        ("percap", "per-vm"),
        ("legacy-gh200", "no"),
        ("vendor", "no"),
    ],
)
def test_cacheable_pfnmap_is_named_by_its_interface(profile: str, word: str) -> None:
    assert labels(golden(profile))[f"{PREFIX}cacheable-pfnmap"] == word


def test_every_answer_makes_a_label() -> None:
    host = golden("fwb")
    for generation in Generation:
        for support in Support:
            cacheable = replace(
                host.cacheable, fwb=None, dic=None, idc=None, support=support, generation=generation
            )
            found = parse(feature_file(replace(host, cacheable=cacheable)), NOW)
            assert found[f"{PREFIX}fwb"] == "unknown"


def test_hosts_have_the_same_baseline_if_a_guest_sees_the_same() -> None:
    def baseline(profile: str) -> str:
        return labels(golden(profile))[f"{PREFIX}baseline"]

    assert baseline("fwb") == baseline("16k") == baseline("vfio")
    assert len({baseline("fwb"), baseline("nofwb"), baseline("gicv2"), baseline("gh200")}) == 4
