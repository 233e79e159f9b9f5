"""scripts/kubernetes: manifests that select what pyvmm labels, and a recipe that has what it needs.

No cluster and no container engine is needed: the files are read.
"""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.state.golden import golden, names
from vmm.cli.run import run
from vmm.state.labels import PREFIX, labels

DIRECTORY = Path(__file__).parents[2] / "scripts" / "kubernetes"
QUANTITY = re.compile(r"[0-9]+(m|[KMGT]i)?")
DNS = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def manifest(name: str) -> dict[str, Any]:
    """Return the one document in a manifest; YAML 1.2, in which duplicate keys are an error."""
    document: dict[str, Any] = YAML(typ="safe").load(DIRECTORY / name)
    return document


POD, LABELS = manifest("pod.yaml"), manifest("labels.yaml")
SPECS = {"pod.yaml": POD["spec"], "labels.yaml": LABELS["spec"]["template"]["spec"]}


def expressions() -> list[dict[str, Any]]:
    affinity = POD["spec"]["affinity"]["nodeAffinity"]
    (required,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    preferred = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    found: list[dict[str, Any]] = required["matchExpressions"]
    return found + [one for term in preferred for one in term["preference"]["matchExpressions"]]


def required_on(profile: str) -> bool:
    """Return whether the scheduler takes the pod to a node with the labels of a lab's host."""
    node = {"kubernetes.io/arch": "arm64", **labels(golden(profile))}
    affinity = POD["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return all(node.get(one["key"]) in one["values"] for one in term["matchExpressions"])


def test_the_pod_goes_where_its_device_memory_is_write_back() -> None:
    assert {name for name in names() if required_on(name)} == {
        name for name in names() if labels_of(name) in (("true", "mainline"), ("true", "rfc"))
    }
    assert required_on("gh200")
    assert not required_on("gh200-nofwb")
    assert not required_on("legacy-gh200")


def labels_of(profile: str) -> tuple[str, ...]:
    found = labels(golden(profile))
    return tuple(found[f"{PREFIX}{name}"] for name in ("fwb", "cacheable-pfnmap"))


def test_each_label_that_is_selected_is_one_that_pyvmm_writes() -> None:
    known = {"kubernetes.io/arch", *labels(golden("fwb"))}
    for one in expressions():
        assert one["key"] in known
        assert one["operator"] == "In"
        assert all(isinstance(value, str) for value in one["values"]), "YAML's own true is no label"
    (baseline,) = (one for one in expressions() if one["key"].endswith(".baseline"))
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in baseline["values"])


@pytest.mark.parametrize("name", SPECS)
def test_a_container_gets_kvm_and_nothing_else(name: str) -> None:
    (container,) = SPECS[name]["containers"]
    limits = container["resources"]["limits"]
    assert limits["devices.kubevirt.io/kvm"] == "1"
    assert all(QUANTITY.fullmatch(value) for value in limits.values())
    assert "privileged" not in container.get("securityContext", {})
    volumes = {one["name"]: one for one in SPECS[name]["volumes"]}
    for mount in container["volumeMounts"]:
        assert mount["name"] in volumes
        assert mount["mountPath"].startswith("/")
    hosts = [one["hostPath"]["path"] for one in volumes.values() if "hostPath" in one]
    assert all(path.startswith("/etc/kubernetes/node-feature-discovery/") for path in hosts)


def test_the_manifests_are_of_their_kinds() -> None:
    assert (POD["apiVersion"], POD["kind"]) == ("v1", "Pod")
    assert (LABELS["apiVersion"], LABELS["kind"]) == ("apps/v1", "DaemonSet")
    assert (
        LABELS["spec"]["selector"]["matchLabels"]
        == LABELS["spec"]["template"]["metadata"]["labels"]
    )
    for one in (POD, LABELS):
        assert DNS.fullmatch(one["metadata"]["name"])


def test_the_guests_arguments_are_those_of_pyvmm_run() -> None:
    (container,) = POD["spec"]["containers"]
    word, *arguments = container["args"]
    assert word == "run"
    assert all(isinstance(argument, str) for argument in arguments)
    run.make_context("run", list(arguments))


def test_the_labels_are_written_by_a_command_that_there_is() -> None:
    (container,) = SPECS["labels.yaml"]["containers"]
    (script,) = container["args"]
    assert "pyvmm probe --format nfd --valid-for 900 >/features.d/.kvm-arm64" in script
    assert "mv /features.d/.kvm-arm64 /features.d/kvm-arm64" in script
    (pause,) = re.findall(r"sleep (\d+)", script)
    assert int(pause) < 900, "labels would expire between two looks"


def test_the_image_has_what_options_start_and_names_no_mirror() -> None:
    text = (DIRECTORY / "Containerfile").read_text()
    lines = re.sub(r"\\\n", "", "\n".join(one for one in text.splitlines() if one[:1] != "#"))
    (installed,) = re.findall(r"apt-get install (.*?)&&", lines)
    assert {"passt", "virtiofsd", "qemu-utils", "python3-venv"} <= set(installed.split())
    (wheel,) = re.findall(r"^COPY (\S+) ", lines, re.MULTILINE)
    assert fnmatch("pyvmm_arm64-0.1.0-cp311-abi3-manylinux_2_17_aarch64.whl", wheel)
    assert re.findall(r"^FROM (\S+)", lines, re.MULTILINE) == ["debian:trixie-slim"]
    assert "://" not in lines
    (entry,) = re.findall(r'ENTRYPOINT \["(.*)"\]', lines)
    (venv,) = re.findall(r"python3 -m venv (\S+)", lines)
    assert entry == f"{venv}/bin/pyvmm"
    assert entry in SPECS["labels.yaml"]["containers"][0]["args"][0]
