"""Console, balloon and persistent memory, with Debian's own kernel and tools in the guest."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest

from vmm.lab.guest import fixture
from vmm.lab.host.emulated_host import Host
from vmm.library.command import Command

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


class Done(NamedTuple):
    """What came of a guest: its own words, those of what ran beside it, events."""

    text: str
    events: list[dict[str, object]]

    def names(self) -> list[object]:
        return [event["event"] for event in self.events]

    def value(self, pattern: str) -> str:
        (found,) = re.findall(pattern, self.text)
        return str(found)


def run(
    host: Host,
    guest: fixture.Guest,
    options: str,
    *,
    beside: str = "",
    words: str = "",
    status: int = 0,
) -> Done:
    """Run *guest* in an empty directory of *host*, with the shell's *beside* there as well.

    To that, $pid is pyvmm.
    """
    cmdline = f"console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff {words}"
    script = f"""
        cd $(mktemp -d)
        pyvmm run --host native --memory 512M --events events {options} \\
            --initrd /host{guest.initrd} --cmdline '{cmdline}' /host{guest.kernel} &
        pid=$!
        {beside}
        wait $pid; echo "status $?"
        cat events >&2
        ls -l; md5sum * 2>/dev/null
    """
    done = host.run(["sh", "-c", script], timeout=500)
    text = done.stdout.decode(errors="replace").replace("\r", "")
    errors = done.stderr.decode(errors="replace")
    assert f"\nstatus {status}\n" in text, text + errors
    events = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert "virtio-needs-reset" not in [event["event"] for event in events], events
    return Done(text, events)


# --- console ------------------------------------------------------------------------------------

ECHO = """
until [ -n "$device" ] && [ -c /dev/hvc0 ]; do  # the driver hears of ports by and by
    for port in /sys/class/virtio-ports/*; do
        [ ! -e $port/name ] || read -r name <$port/name
        [ "$name" != pyvmm.test ] || device=/dev/${port##*/}
    done
done
exec 3<>$device 4<>/dev/hvc0
head -c 1048576 <&3 >/tmp/data
md5sum /tmp/data
cat /tmp/data >&3
stty raw <&4
dd if=/tmp/data bs=4096 >&4 2>/dev/null
"""

CLIENT = """
import hashlib, os, socket, time
link = socket.socket(socket.AF_UNIX)
while link.connect_ex("socket"):
    time.sleep(0.1)
data, got = os.urandom(1 << 20), bytearray()
link.sendall(data)
while len(got) < len(data) and (more := link.recv(1 << 16)):
    got += more
print("client", hashlib.md5(data).hexdigest(), got == data)
"""


def test_a_mebibyte_passes_each_way_through_ports_and_consoles(
    lab_host: Callable[[str], Host],
) -> None:
    """From a socket's client to a named port, back, and to hvc0, which is a file."""
    guest = fixture.guest(modules=["virtio_mmio", "virtio_console"], script=ECHO)
    done = run(
        lab_host("fwb"),
        guest,
        "--console file=hvc --console unix=socket,name=pyvmm.test",
        beside=f"python3 -c '{CLIENT}'",
    )
    sent = done.value(r"client ([0-9a-f]+) True")
    assert done.value(r"([0-9a-f]+)  /tmp/data") == sent
    assert done.value(r"([0-9a-f]+)  hvc") == sent
    assert done.names().count("console-connected") == 1
    assert done.names().count("console-disconnected") == 1
    assert "socket" not in done.text.partition("status 0")[2], "it is gone with the machine"


def test_the_terminal_can_be_the_virtio_console(lab_host: Callable[[str], Host]) -> None:
    """And what the serial port says is shown, too. This time it is a PCI function."""
    script = (
        "until [ -c /dev/hvc0 ]; do :; done; echo from serial; "
        "exec <>/dev/hvc0 >&0 2>&0; echo from hvc; read -r x; echo got $x"
    )
    guest = fixture.guest(modules=["virtio_pci", "virtio_console"], script=script)
    host = lab_host("fwb")
    command = ["pyvmm", "run", "--host", "native", "--transport", "pci", "--console", "stdio"]
    command += ["--cmdline", "console=ttyAMA0 quiet pyvmm.then=poweroff"]
    command += ["--initrd", f"/host{guest.initrd}", f"/host{guest.kernel}"]
    done = host.run(["sh", "-c", 'echo typed | "$@"', "sh", *command], timeout=300)
    text = done.stdout.decode().replace("\r", "")
    assert done.status == 0, text
    assert "from serial\n" in text  # when it likes: Linux queues what it writes to a UART
    assert text.index("from hvc\n") < text.index("got typed\n")
    assert b"pyvmm: --console stdio: what you type goes to hvc0, but the" in done.stderr


def test_the_keyboard_can_go_to_the_other_console(lab_host: Callable[[str], Host]) -> None:
    """A shell on the serial port prompts, and would never hear what is typed into hvc0."""
    guest = fixture.guest(modules=["virtio_mmio", "virtio_console"])
    command = ["pyvmm", "run", "--host", "native", "--console", "stdio", "--cmdline"]
    command += ["console=ttyAMA0 quiet", "--initrd", f"/host{guest.initrd}", f"/host{guest.kernel}"]
    with Command(lab_host("fwb"), command, terminal=True) as talk:
        talk.expect(rb"no console=hvc0; add it")
        talk.expect(rb"guest:\S*# ")
        talk.send(b"echo $((20+3))\r")
        talk.send(b"\x01c")
        talk.expect(rb"what you type goes to the serial port")
        talk.send(b"echo $((40+2)); exit\r")
        talk.expect(rb"\n42\r")
        assert talk.finish() == 0
        assert b"\n23\r" not in talk.output


# --- balloon ------------------------------------------------------------------------------------

GIVE_BACK = """
rmmod virtio_balloon
dd if=/dev/zero of=/tmp/data bs=1M count=180 2>/dev/null
rm /tmp/data
modprobe virtio_balloon
echo loaded
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    read -r name pages < <(grep nr_balloon_pages /proc/vmstat)
    [ "$pages" != 8192 ] || break
    sleep 1
done
sleep 4
"""

WATCH = """
while [ -e /proc/$pid/status ]; do
    sed -n "s/VmRSS:\\s*/rss /p" /proc/$pid/status 2>/dev/null
    sleep 0.5
done
"""


def test_memory_comes_back_from_the_guest(lab_host: Callable[[str], Host]) -> None:
    """What a file needed comes back by free page reporting, and 32 MiB by the balloon."""
    script = GIVE_BACK.replace("< <(grep nr_balloon_pages /proc/vmstat)", "</tmp/pages")
    script = script.replace(
        "    read", "    grep nr_balloon_pages /proc/vmstat >/tmp/pages\n    read"
    )
    guest = fixture.guest(modules=["virtio_mmio", "virtio_balloon"], script=script)
    done = run(lab_host("fwb"), guest, "--balloon-size 32M", beside=WATCH)
    sizes = [int(kib) / 1024 for kib in re.findall(r"rss (\d+) kB", done.text)]
    most = max(sizes)
    last = sizes[-4:]
    assert most > 200
    assert min(last) < most - 150, sizes
    assert "balloon-reached" in done.names()
    last_word = [event for event in done.events if event["event"] == "balloon-stats"][-1]
    assert last_word["actual"] == 32 << 20
    total = last_word["total"]
    assert isinstance(total, int)
    assert 400 << 20 < total < 512 << 20


# --- persistent memory --------------------------------------------------------------------------

FIRST = """
mkfs.ext4 -q -b 4096 /dev/pmem0
mount -t ext4 -o dax=always /dev/pmem0 /mnt && grep pmem0 /proc/mounts
dd if=/dev/urandom of=/mnt/data bs=1M count=8 conv=fsync 2>/dev/null
md5sum /mnt/data
"""

AGAIN = """
e2fsck -fy /dev/pmem0 >/dev/null 2>&1; echo "fsck $?"
e2fsck -fn /dev/pmem0 >/dev/null 2>&1; echo "clean $?"
mount -t ext4 -o dax=always /dev/pmem0 /mnt && md5sum /mnt/data
echo "changed" >/mnt/data; sync
"""


def test_persistent_memory_is_a_disk_that_lasts(lab_host: Callable[[str], Host]) -> None:
    """Switched off without an unmount: what fsync returned for is there, and the rest is sound."""
    path = "/run/tmp/pmem-of-test"  # a file system of the lab host's own
    host, modules = lab_host("fwb"), ["virtio_mmio", "virtio_pmem", "nd_pmem", "ext4"]
    script = f"case $arguments in *first*) {FIRST} ;; *) {AGAIN} ;; esac"
    script = f"read -r arguments </proc/cmdline\n{script}"
    guest = fixture.guest(modules=modules, packages=["e2fsprogs"], script=script)
    try:
        first = run(host, guest, f"--pmem {path},size=64M", words="first")
        assert "dax=always" in first.text
        data = first.value(r"([0-9a-f]+)  /mnt/data")
        again = run(host, guest, f"--pmem {path}")
        assert again.value(r"([0-9a-f]+)  /mnt/data") == data
        assert again.value(r"fsck (\d)") in "01", "0: sound; 1: sound after the journal"
        assert again.value(r"clean (\d)") == "0"
        look = f"data = open('{path}', 'rb').read(); print(b'changed' in data, len(data))"
        found = host.run(["python3", "-c", look], timeout=60)
        assert found.stdout == b"True 67108864\n"
    finally:
        host.run(["rm", "-f", path], timeout=60)


CUT = """
echo ready | dd of=/dev/pmem0 conv=fsync 2>/dev/null
while true; do dd if=/dev/pmem0 of=/dev/null bs=1M iflag=direct 2>/dev/null; done
"""


def test_persistent_memory_that_is_cut_ends_the_machine_in_order(
    lab_host: Callable[[str], Host],
) -> None:
    """KVM finds no page for the guest's load, and the process that maps the file lives."""
    path = "/run/tmp/pmem-to-cut"
    host = lab_host("fwb")
    guest = fixture.guest(modules=["virtio_mmio", "virtio_pmem", "nd_pmem"], script=CUT)
    cut = f"until grep -q ready {path}; do sleep 0.2; done; truncate -s 4096 {path}"
    try:
        done = run(host, guest, f"--pmem {path},size=64M 2>said", beside=cut, status=3)
        assert "vcpu-failed" in done.names()
        said = [event["error"] for event in done.events if event["event"] == "vcpu-failed"]
        assert f"--pmem {path}: the file was made shorter" in str(said[0])
    finally:
        host.run(["rm", "-f", path], timeout=60)
