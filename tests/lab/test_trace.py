"""A trace of a Linux boot, as Perfetto reads it, against what KVM itself has counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.observe.trace_processor import query
from vmm.lab.guest import uki
from vmm.lab.host import packages
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside

pytestmark = pytest.mark.lab

EXITS = """
    select thread.name as vcpu, slice.name as name, count(*) as number
    from slice join thread_track on slice.track_id = thread_track.id join thread using (utid)
    where category = 'exit' group by 1, 2"""
KVM = "select key, cast(display_value as int) as value from args where key glob 'args.vcpu*'"
CHAINS = """
    select name, count(*) as number, sum(extract_arg(arg_set_id, 'args.written')) as written
    from slice where category = 'queue' group by 1"""
INTERRUPTS = "select name, count(*) as number from slice where category = 'interrupt' group by 1"
PHASES = "select name from slice where category = 'machine' order by ts"
PROBLEMS = "select name, value from stats where severity != 'info' and value != 0"


@pytest.mark.profile("fwb")
@pytest.mark.parametrize("transport", ["mmio", "pci"])
def test_perfetto_holds_every_exit_that_kvm_has_counted(
    lab_host: Callable[[str], Host], tmp_path: Path, transport: str
) -> None:
    trace, events, disk = (tmp_path / name for name in ("trace.json", "events", "disk.img"))
    disk.write_bytes(bytes(1 << 20))
    options = ["--trace", str(trace), "--events", str(events), "--disk", str(disk)]
    host = lab_host("fwb")
    packages.install(host, ["virtiofsd"])
    machine = ["--cpus", "2", "--transport", transport, "--cmdline", "console=ttyAMA0"]
    command = ["pyvmm", "run", *machine, *options, inside(uki.guest_image())]
    done = host.run([*command, "--", "sh", "-c", "cat /dev/vda | wc -c"], cwd=tmp_path, timeout=300)
    assert done.status == 0, done.stderr.decode()
    assert done.stdout.split() == [b"1048576"]
    exits, kvm, chains, interrupts, phases, problems = query(
        trace.read_bytes(), EXITS, KVM, CHAINS, INTERRUPTS, PHASES, PROBLEMS
    )
    assert not problems
    counted = {row["key"].removeprefix("args."): row["value"] for row in kvm}
    for vcpu in ("vcpu0", "vcpu1"):
        mmio = sum(
            row["number"]
            for row in exits
            if row["vcpu"] == vcpu and row["name"].endswith((" load", " store"))
        )
        assert mmio == counted[f"{vcpu}.mmio_exit_user"] > 0
    names = {row["name"] for row in exits}
    assert {"PL011 UART store", "kick"} <= names
    assert not any(name.startswith("nothing") for name in names), names
    assert any(name.startswith("disk0") for name in names)
    (disk0,) = (row for row in chains if row["name"] == "disk0 queue 0")
    assert disk0["written"] >= 1 << 20, "bytes that the guest has read"
    assert any(row["name"].startswith("disk0") for row in interrupts)
    said = [row["name"] for row in phases]
    order = ["parts are opened", "the guest is silent", "kernel's first words", "init starts"]
    assert [name for name in said if name in order] == order
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert [each["name"] for each in told if each["event"] == "phase"][:2] == [
        "options are read",
        "parts are opened",
    ]
