"""One snapshot, several guests at once: each is another one, and they share what none writes."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.lab.moving import WORDS, inside, place
from vmm.lab.guest import fixture
from vmm.lab.host.emulated_host import Host
from vmm.library.command import Command

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

CLONES = 3
DATA = 48 << 20
"""Bytes that each guest reads and none writes."""

SCRIPT = f"""
head -c {DATA} /dev/urandom >/tmp/data
until [ -b /dev/vda ]; do :; done
echo reseeded before: $(dmesg | grep -c 'crng reseeded due to virtual machine fork')
echo ready
read -r line
echo "drawn $(head -c 16 /dev/urandom | md5sum)"
echo reseeded: $(dmesg | grep -c 'crng reseeded due to virtual machine fork')
echo "data $(md5sum </tmp/data)"
echo "$line" | dd of=/dev/vda conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
echo "disk $(head -c 6 /dev/vda)"
read -r line
"""


def of_memory(host: Host, pid: int) -> dict[str, int]:
    """Return the bytes that process *pid* has of the snapshot's memory, by their names in smaps."""
    text = host.run(["cat", f"/proc/{pid}/smaps"]).stdout.decode()
    mappings = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", text)
    (found,) = (each for each in mappings if "/saved/memory." in each.partition("\n")[0])
    return {name: int(kib) << 10 for name, kib in re.findall(r"(?m)^(\w+): +(\d+) kB", found)}


@pytest.mark.parametrize("profile", ["fwb", "nofwb"])
def test_clones_are_different_guests_that_share_memory(
    lab_host: Callable[[str], Host], profile: str
) -> None:
    host = lab_host(profile)
    guest = fixture.guest(modules=["virtio_mmio", "virtio_blk"], script=SCRIPT)
    directory = place(host)
    run = ["pyvmm", "run", "--host", "native"]
    machine = ["--memory", "256M", "--disk", "disk", "--cmdline", WORDS, "--initrd"]
    machine += [f"/host{guest.initrd}", f"/host{guest.kernel}"]
    saving = [*run, "--snapshot", "saved,then=end", *machine]
    with Command(host, inside(directory, saving)) as talk:
        talk.expect(rb"reseeded before: 0")
        talk.expect(rb"ready")
        talk.signal(signal.SIGUSR2)
        assert talk.finish() == 0, talk.story()
    drawn, data, pids = set(), set(), []
    with ExitStack() as stack:
        for number in range(CLONES):
            copying = f"import shutil; shutil.copy2('disk', 'disk{number}')"  # to the nanosecond
            assert host.run(inside(directory, ["python3", "-c", copying])).status == 0
            restore = shlex.join([*run, "--restore", "saved", "--disk", f"disk{number}"])
            words = ["sh", "-c", f"cd {directory}; echo $$ >pid{number}; exec {restore}"]
            talk = stack.enter_context(Command(host, words))
            talk.send(b"guest%d\n" % number)
            drawn.add(talk.expect(rb"drawn (\w{32})")[1])
            talk.expect(rb"reseeded: 1")
            data.add(talk.expect(rb"data (\w{32})")[1])
            talk.expect(rb"disk guest%d" % number)
            pids.append(int(host.run(["cat", f"{directory}/pid{number}"]).stdout))
        assert len(drawn) == CLONES, "two guests drew the same random numbers"
        assert len(data) == 1
        for pid in pids:
            shares = of_memory(host, pid)
            assert shares["Rss"] > DATA
            assert shares["Shared_Clean"] + shares["Shared_Dirty"] > DATA  # dirty, on a tmpfs
            assert shares["Anonymous"] < DATA // 2, "a guest has what it has not written"
            assert shares["Pss"] < shares["Rss"] - DATA * (CLONES - 1) // CLONES
    heads = [host.run(["head", "-c", "6", f"{directory}/disk{n}"]).stdout for n in range(CLONES)]
    assert heads == [b"guest%d" % number for number in range(CLONES)]
