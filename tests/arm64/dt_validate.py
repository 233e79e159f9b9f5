"""Check a device tree against Linux's bindings, with dt-validate.

The bindings come from Debian's linux-doc package, which is a quarter of linux-source; those that a
virtual board needs are processed once and cached. Nothing is downloaded after that.

dt-validate exits 0 whatever it finds, and a file it can't open is no finding either: what counts
is its report, and that it has read a tree which is known to be wrong.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from functools import cache as once
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import pytest

from vmm.lab import cache
from vmm.lab.debian import apt

SUITE = "trixie"
PACKAGE = "linux-doc-6.12"

BINDINGS = (
    "arm/cpus",
    "arm/linux,dummy-virt",
    "arm/pmu",
    "arm/psci",
    "clock/fixed-clock",
    "gpio/pl061-gpio",
    "input/gpio-keys",
    "interrupt-controller/arm,gic",
    "interrupt-controller/arm,gic-v3",
    "iommu/arm,smmu-v3",
    "mtd/mtd-physmap",
    "pci/host-generic-pci",
    "rng/microsoft,vmgenid",
    "rtc/arm,pl031",
    "serial/pl011",
    "timer/arm,arch_timer",
    "virtio/mmio",
    "virtio/pci-iommu",
)
"""Extend this for new kinds of devices; bindings that these refer to are included."""

TEXT_ONLY = {"qemu,pvpanic-mmio"}
"""Documented as text only (misc/pvpanic-mmio.txt), so it cannot be checked."""

_REFERENCE = re.compile(r"\$ref:\s*[\"']?(/schemas/)?([^#\"'\s]+)\.yaml")


def validate(dtb: bytes) -> list[str]:
    """Return the errors in the device tree *dtb*, one a line: "node: message".

    A compatible string that no binding documents is wrong, too. Skips the test if dtschema isn't
    installed.
    """
    pytest.importorskip("dtschema", reason="dtschema is not installed (pip install dtschema)")
    schema = _schema()
    with tempfile.TemporaryDirectory() as directory:
        blob, report = Path(directory) / "board.dtb", Path(directory) / "report.json"
        blob.write_bytes(dtb)
        command = [_tool("dt-validate"), "-m", "-s", str(schema), "--json-output", str(report)]
        done = subprocess.run([*command, str(blob)], capture_output=True, text=True, check=False)
        assert report.exists(), f"dt-validate made no report: {done.stderr}"
        findings = json.loads(report.read_text())
    return [
        f"{finding.get('node', '')}: {'.'.join(map(str, finding.get('property_path', ())))}: "
        f"{finding['message']}"
        for finding in findings
        if not (finding["type"] == "unmatched" and TEXT_ONLY.issuperset(finding["compatible"]))
    ]


def _tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@once
def _schema() -> Path:
    """Return the processed bindings, from the cache."""
    (deb,) = apt.fetch([PACKAGE], suite=SUITE, arch="arm64")
    key = cache.digest(deb.name, BINDINGS, version("dtschema"))

    def build(temporary: Path) -> None:
        with tempfile.TemporaryDirectory() as directory:
            for name, text in _closure(_bindings(deb)).items():
                path = Path(directory) / f"{name}.yaml"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text)
            command = [_tool("dt-mk-schema"), "-j", "-o", str(temporary), directory]
            subprocess.run(command, capture_output=True, check=True)

    return cache.entry(cache.root() / "bindings" / f"processed-{key}.json", build)


def _bindings(deb: Path) -> dict[str, bytes]:
    """Return all bindings of the package, by path below devicetree/bindings."""
    found = {}
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE
    ) as unpacker:
        assert unpacker.stdout
        with tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive:
            for member in archive:
                _, inside, name = member.name.partition("/devicetree/bindings/")
                if inside and name.endswith(".yaml.gz") and (file := archive.extractfile(member)):
                    found[name.removesuffix(".yaml.gz")] = file.read()
    return found


def _closure(bindings: dict[str, bytes]) -> dict[str, bytes]:
    """Return `BINDINGS` and what they refer to; dtschema itself has the most basic ones."""
    wanted = list(BINDINGS)
    texts: dict[str, bytes] = {}
    while wanted:
        name = wanted.pop()
        if name in texts or name not in bindings:
            assert name not in BINDINGS or name in texts, f"{PACKAGE} has no binding {name}"
            continue
        texts[name] = gzip.decompress(bindings[name])
        for absolute, path in _REFERENCE.findall(texts[name].decode()):
            beside = PurePosixPath(name).parent / path
            wanted.append(path if absolute else str(beside))
    return texts


def dtc_warnings(dtb: bytes) -> str:
    """Return what dtc says about the device tree *dtb*. Skips the test without dtc."""
    if not shutil.which("dtc"):
        pytest.skip("dtc (device-tree-compiler) is not installed")
    # dtc 1.6 warns of an interrupt controller without #address-cells, which pl061-gpio.yaml does
    # not allow; Linux 7.3's does no more (scripts/dtc/checks.c, check_interrupt_provider).
    options = ["-Wno-interrupt_provider", "-I", "dtb", "-O", "dts", "-o", "/dev/null"]
    done = subprocess.run(
        ["dtc", *options, "-"],
        input=dtb,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.decode()
