"""Networks and sockets of a guest: Debian's kernel on real KVM, vhost, TAP and passt."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vmm.lab.guest import fixture
from vmm.lab.host import packages
from vmm.lab.host.emulated_host import Host

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

PEER = Path(__file__).parent / "inside" / "net_peer.py"
EVENTS = "/run/tmp/network-events"
MODULES = ("virtio_mmio", "virtio_pci", "virtio_net", "virtio_blk", "vmw_vsock_virtio_transport")
PORT = 7000

UP = "ip link set eth0 up; ip addr add {guest}/24 dev eth0; ip route add default via {host}; "
TRANSFER = (
    "for try in 1 2; do "
    f"socat -u -b 131072 TCP:{{host}}:{PORT} CREATE:/run/data && break; done; md5sum /run/data; "
    "for try in 1 2; do "
    f"socat -u -b 131072 OPEN:/run/data TCP:{{host}}:{PORT} && break; done; "
)
TAP = {"host": "10.77.0.1", "guest": "10.77.0.2"}
PASST = {"host": "10.0.2.2", "guest": "10.0.2.15"}
"""passt gives guests the host's own address; traffic to the router ends at the host."""


AS_USER = """\
import os, sys
os.setgid(1000)
os.setuid(1000)
os.environ["PATH"] = "/run/tmp/bin:" + os.environ["PATH"]
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def host(lab_host: Callable[[str], Host]) -> Host:
    return lab_host("fwb")


class Outcome(NamedTuple):
    """The result of running a machine."""

    status: int
    text: str
    events: list[dict[str, Any]]
    transfers: list[dict[str, Any]]
    echoes: list[str]

    def check_transfers(self, megabytes: int, failures: int = 0) -> None:
        """Check that both transfers are whole.

        *failures* connections may have failed before.
        """
        failed = [transfer for transfer in self.transfers if transfer["error"]]
        assert len(failed) <= failures, (failed, self.text)
        done = [transfer for transfer in self.transfers if not transfer["error"]]
        sums = [transfer["md5"] for transfer in done]
        assert [transfer["bytes"] for transfer in done] == [megabytes << 20] * 2, self.text
        assert sums[0] == sums[1]
        assert f"{sums[0]}  /run/data" in self.text
        print([transfer["MB/s"] for transfer in done], "MB/s in, out", failed)  # noqa: T201

    def names(self) -> set[str]:
        return {event["event"] for event in self.events}


def run(
    host: Host,
    script: str,
    options: Sequence[str],
    *,
    peer: Sequence[str] = ("1", str(PORT)),
    then: str = "poweroff",
    before: Sequence[str] = (),
) -> Outcome:
    """Run *script* in a guest with *options*, and the peer beside it.

    *before* is a command that runs pyvmm, with copies of its files that anybody can read.
    """
    guest = fixture.guest(modules=MODULES, packages=["socat"], script=script)
    files = [f"/host{file}" for file in (guest.initrd, guest.kernel)]
    if before:
        copy = (
            f"mkdir -p -m 777 /run/tmp; cp {files[0]} /run/tmp/initrd; cp {files[1]} /run/tmp/linux"
        )
        assert host.run(["sh", "-c", copy], timeout=60).status == 0
        files = ["/run/tmp/initrd", "/run/tmp/linux"]
    command = ["python3", f"/host{PEER}", *peer, "--", *before]
    command += ["pyvmm", "run", "--host", "native", "--memory", "512M", "--events", EVENTS]
    command += ["--cmdline", f"console=ttyAMA0 quiet panic=-1 pyvmm.then={then}", *options]
    command += ["--initrd", *files]
    done = host.run(command, timeout=900)
    text = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    said = [line for line in text.splitlines() if line.startswith('{"transfers"')]
    found = json.loads(said[0]) if said else {"transfers": [], "echoes": []}
    lines = host.run(["cat", EVENTS], timeout=60).stdout.splitlines()
    return Outcome(done.status, text, [json.loads(line) for line in lines], **found)


@pytest.mark.parametrize(("vhost", "megabytes"), [("on", 100), ("off", 20)])
def test_data_go_both_ways_over_a_tap_by_several_queues(
    host: Host, vhost: str, megabytes: int
) -> None:
    script = UP + "ping -c 2 {host}; " + TRANSFER + "ls /sys/class/net/eth0/queues; "
    script += "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; cat /proc/interrupts"
    net = f"tap,address={TAP['host']}/24,queues=2,vhost={vhost},mac=52:54:00:77:00:02,mtu=1400"
    outcome = run(
        host,
        script.format(**TAP),
        ["--net", net, "--cpus", "2", "--transport", "pci" if vhost == "on" else "mmio"],
        peer=[str(megabytes), str(PORT)],
    )
    assert outcome.status == 0, outcome.text
    assert " 0% packet loss" in outcome.text
    outcome.check_transfers(megabytes)
    assert "rx-1" in outcome.text
    assert "52:54:00:77:00:02\r\n1400\r\n" in outcome.text
    assert not {"virtio-needs-reset", "vhost-failed"} & outcome.names()
    (up,) = (event for event in outcome.events if event["event"] == "net-up")
    assert up["vhost"] is (vhost == "on")
    if vhost == "on":  # with MSI-X, so that each queue's interrupts can be counted
        lines = [line.split() for line in outcome.text.splitlines() if "virtio0-input" in line]
        assert all(sum(map(int, line[1:3])) > 0 for line in lines)
        assert len(lines) == 2
    left = host.run(["ls", "/sys/class/net"], timeout=60).stdout.decode().split()
    assert left == ["eth0", "lo"]


def test_a_user_who_is_not_root_has_a_network(host: Host) -> None:
    packages.install(host, ["passt"])
    prepare = (
        "chmod 666 /dev/kvm; touch {events}; chmod 666 {events}; "
        "mkdir -p /run/tmp/bin; cp -L $(which passt) /run/tmp/bin; "  # it is in root's home
        "echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range"
    )
    assert host.run(["sh", "-c", prepare.format(events=EVENTS)], timeout=60).status == 0
    script = UP + "ping -c 2 {host}; " + TRANSFER + "timeout 60 socat TCP-LISTEN:22 EXEC:cat"
    outcome = run(
        host,
        script.format(**PASST),
        ["--net", "user,host=on,forward=tcp:2222:22"],
        peer=["100", str(PORT), "--echo", "2222"],
        before=["python3", "-c", AS_USER],
    )
    assert outcome.status == 0, outcome.text
    assert " 0% packet loss" in outcome.text
    # Once in a dozen runs, on a busy machine, a connection ended early; the cause is unknown.
    outcome.check_transfers(100, failures=1)
    assert outcome.echoes == ["2222"]
    (up,) = (event for event in outcome.events if event["event"] == "net-up")
    assert up["passt"] == "vhost-user"
    assert not {"virtio-needs-reset", "vhost-user-lost"} & outcome.names()
    assert b"passt" not in host.run(["ps"], timeout=60).stdout


@pytest.mark.parametrize("user", ["root", "another"])
def test_sockets_between_host_and_guest(host: Host, user: str) -> None:
    """Another user's machine has a user namespace, though vhost's worker is one of its threads."""
    allow = f"chmod 666 /dev/kvm /dev/vhost-vsock; touch {EVENTS}; chmod 666 {EVENTS}"
    assert host.run(["sh", "-c", allow], timeout=60).status == 0
    before = ["python3", "-c", AS_USER] if user == "another" else []
    script = TRANSFER.replace("TCP:{host}", "VSOCK-CONNECT:2")
    script += "timeout 60 socat VSOCK-LISTEN:9000 EXEC:cat"
    peer = ["20", str(PORT), "--vsock", "--echo", "77:9000"]
    outcome = run(host, script, ["--vsock", "77"], peer=peer, before=before)
    assert outcome.status == 0, outcome.text
    (isolated,) = (event for event in outcome.events if event["event"] == "isolated")
    assert {"user", "files", "network"} <= {*isolated["walls"]}
    outcome.check_transfers(20)
    assert outcome.echoes == ["77:9000"]


def test_networks_and_sockets_work_again_after_each_reset(host: Host) -> None:
    """Each reset is a new VM; the devices, TAP and vhost stay."""
    packages.install(host, ["passt"])
    script = UP + "ip link set eth1 up; ip addr add {user}/24 dev eth1; ip route del default; "
    script += "ping -c 1 {host} | grep -c '1 packets received'; "
    script += "ping -c 1 10.0.2.2 | grep -c '1 packets received'; "
    script += TRANSFER.replace("TCP:{host}", "VSOCK-CONNECT:2")
    script += "read boots </dev/vda; echo $((boots + 1)) >/dev/vda; sync; "
    script += "[ $boots = 2 ] && poweroff"
    prepare = "echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range; "
    prepare += "echo 1 >/run/tmp/boots; truncate -s 4096 /run/tmp/boots"
    assert host.run(["sh", "-c", prepare], timeout=60).status == 0
    tap = f"tap,address={TAP['host']}/24"
    outcome = run(
        host,
        script.format(**TAP, user=PASST["guest"]),
        ["--net", tap, "--net", "user,host=on", "--vsock", "78", "--disk", "/run/tmp/boots"],
        peer=["1", str(PORT), "--vsock"],
        then="reboot",
    )
    assert outcome.status == 0, outcome.text
    boots = [event["event"] for event in outcome.events].count("power-on")
    assert boots == 2
    answers = [line.strip() for line in outcome.text.splitlines() if line.strip() in {"0", "1"}]
    assert answers == ["1", "1"] * boots
    assert len(outcome.transfers) == 2 * boots
    assert len({transfer["md5"] for transfer in outcome.transfers}) == 1
    assert not {"virtio-needs-reset", "vhost-failed", "vhost-user-lost"} & outcome.names()


def test_vhost_net_serves_rings_and_survives_bad_ones(host: Host) -> None:
    done = host.run(["python3", f"/host{PEER.with_name('vhost_kernel.py')}"], timeout=300)
    assert done.status == 0, done.stderr.decode()
    assert done.stdout.splitlines()[-1] == b"leaves no interface"


IN_USE = """\
import socket, sys
sys.argv[1:] = ["run", "--host", "native", "--vsock", "79", sys.argv[1]]
from vmm.virtio.vsock import VsockBackend
from vmm.cli import main
with VsockBackend(79):
    main()
"""

ERRORS = [
    (["--net", "tap,bridge=br9"], 2, "--net tap,bridge=br9: there is no interface br9; make the"),
    (["--net", "tap=lo"], 3, "--net tap=lo: TUNSETIFF(name=lo, flags=0x5102): Invalid argument;"),
    (["--net", "tap,address=1.2.3.4"], 2, "write an address of the host's with its network"),
    (["--vsock", "2"], 2, "--vsock: '2' is no guest's context ID; use one from 3 to 4294967294"),
]


@pytest.mark.parametrize(("options", "status", "error"), ERRORS)
def test_what_cannot_be_had_is_one_line(
    host: Host, options: list[str], status: int, error: str
) -> None:
    guest = fixture.guest(modules=MODULES, packages=["socat"])
    done = host.run(
        ["pyvmm", "run", "--host", "native", *options, f"/host{guest.kernel}"], timeout=300
    )
    (line,) = done.stderr.decode().splitlines()
    assert (done.status, error in line) == (status, True), line


def test_a_context_id_that_another_machine_has_is_refused(host: Host) -> None:
    guest = fixture.guest(modules=MODULES, packages=["socat"])
    done = host.run(["python3", "-c", IN_USE, f"/host{guest.kernel}"], timeout=300)
    (line,) = done.stderr.decode().splitlines()
    assert done.status == 3
    assert "--vsock 79: VHOST_VSOCK_SET_GUEST_CID(guest_cid=0x4f): Address already in use;" in line
    assert line.endswith("another machine has this context ID: use another")
