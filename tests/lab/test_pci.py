"""Virtio over PCI on real KVM: Debian's kernels, and hostile guests."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.guest.flat_guest import assemble
from tests.recorded import PHASES
from vmm.events import COMPLAINTS
from vmm.lab.guest import fixture
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import Completed

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

EVENTS = "/run/tmp/pci-events"
MSI_DELIVERY = Path(__file__).parent / "inside" / "msi_delivery.py"
SPARSE_BAR = Path(__file__).parent / "inside" / "sparse_bar.py"
MODULES = ("virtio_pci", "virtio_blk", "virtio_rng")
BOOT = 300.0


def there(path: Path) -> str:
    """Return the path at which the host sees one of our files."""
    return f"/host{path}"


def run(host: Host, guest: fixture.Guest, *options: str) -> str:
    """Run *guest*; return its console output."""
    cmdline = "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"
    command = ["pyvmm", "run", "--host", "native", "--transport", "pci", "--events", EVENTS]
    command += ["--initrd", there(guest.initrd), "--cmdline", cmdline, *options]
    done = host.run([*command, there(guest.kernel)], timeout=BOOT)
    text = done.stdout.decode(errors="replace")
    assert done.status == 0, text + done.stderr.decode()
    return text


def events(host: Host) -> Counter[str]:
    lines = host.run(["cat", EVENTS], timeout=60).stdout.splitlines()
    return Counter(json.loads(line)["event"] for line in lines)


def interrupts(text: str, what: str) -> int:
    """Return the number of interrupts in lines of /proc/interrupts that contain *what*."""
    total = 0
    for line in text.splitlines():
        counts, found, _ = line.partition(what)
        if found and re.match(r"\s*\d+:", counts):
            total += sum(int(number) for number in counts.split(":")[1].split() if number.isdigit())
    return total


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()  # noqa: S324


# Runs twice: the disk records that the first time is over.
TWICE = """
echo BEFORE; cat /proc/interrupts; echo; md5sum /dev/vda
if [ "$(dd if=/dev/vda bs=5 count=1 2>/dev/null)" = again ]; then
    D=/sys/bus/pci/devices/0000:00:01.0 V=/sys/bus/pci/drivers/virtio-pci
    echo 0000:00:01.0 > $V/unbind
    echo flr > $D/reset_method; echo 1 > $D/reset && echo RESET
    setpci -s 00:01.0 CAP_PM+4.W=3; lspci -s 00:01.0 -vv | grep "Status: D"
    setpci -s 00:01.0 CAP_PM+4.W=0
    echo 0000:00:01.0 > $V/bind; md5sum /dev/vda
    echo 1 > $D/remove
    echo 1 > /sys/bus/pci/rescan; md5sum /dev/vda
else
    lspci -vv
    for part in 0 1 2 3; do
        taskset $((1 << part)) dd if=/dev/vda of=/dev/vda bs=64k count=16 skip=$((part * 16)) \
            seek=$((64 + part * 16)) conv=notrunc,fsync 2>/dev/null &
    done
    wait
    dd if=/dev/hwrng bs=1024 count=4 2>/dev/null | md5sum
    echo AFTER; cat /proc/interrupts; echo; md5sum /dev/vda
    printf again | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null
    reboot -f
fi
"""


def test_a_debian_guest_uses_disk_and_rng_by_msix_and_again_after_a_reboot(
    lab_host: Callable[[str], Host], tmp_path: Path
) -> None:
    host, image = lab_host("fwb"), tmp_path / "disk.img"
    data = os.urandom(8 << 20)
    image.write_bytes(data)
    guest = fixture.guest(modules=MODULES, packages=["pciutils"], script=TWICE)
    text = run(host, guest, "--rng", "--disk", f"{there(image)},queues=4", "--cpus", "4")
    copied = data[: 4 << 20] * 2
    for expected in (data, copied, b"again" + copied[5:]):
        assert md5(expected) in text
    assert image.read_bytes() == b"again" + copied[5:]
    assert text.count(md5(b"again" + copied[5:])) == 3, "after reset and sleep, and a rescan"
    assert "RESET" in text
    assert "Status: D3 NoSoftRst+" in text

    before, after = text.split("AFTER")[0].split("BEFORE")[1], text.split("AFTER")[1]
    for what in ("virtio0-req", "virtio1-input"):
        assert interrupts(after, what) > interrupts(before, what), what
    used = [interrupts(after, f"virtio0-req.{queue}") for queue in range(4)]
    assert sum(count > 0 for count in used) >= 2, used
    assert "Level     virtio" not in text, "no INTx"

    functions = re.split(r"(?m)^(?=00:\d\d\.\d )", text.split("AFTER")[0])[1:]
    assert [function[:7] for function in functions] == ["00:01.0", "00:02.0"]
    for function, device in zip(functions, ("1af4:1042", "1af4:1044"), strict=True):
        assert device in function
        for said in ("Mem+ BusMaster+", "DisINTx+", "MSI-X: Enable+", "Notify", "CommonCfg"):
            assert said in function
        assert "Root Complex Integrated Endpoint" in function
        assert "virtio-pci" in function.split("in use:")[1]
        assert not re.search(
            r"(?i)<unassigned>|\[disabled\]|unknown header|Abort\+|PERR\+", function
        )
    assert text.count("pyvmm guest: Linux") == 2
    happened = events(host)
    assert happened["power-on"] == 2
    assert not {"pci-bar-refused", "pci-bar-trapped", "msi-refused"} & set(happened)


@pytest.mark.profile("gicv2")
def test_without_an_its_devices_interrupt_by_intx(
    lab_host: Callable[[str], Host], tmp_path: Path
) -> None:
    host, image = lab_host("gicv2"), tmp_path / "disk.img"
    data = os.urandom(1 << 20)
    image.write_bytes(data)
    script = (
        "md5sum /dev/vda; dd if=/dev/zero of=/dev/vda bs=4k count=8 conv=notrunc,fsync; "
        "dd if=/dev/hwrng bs=64 count=4 2>/dev/null | md5sum; cat /proc/interrupts"
    )
    guest = fixture.guest(modules=MODULES, script=script)
    text = run(host, guest, "--rng", "--disk", f"{there(image)},queues=2", "--cpus", "2")
    assert md5(data) in text
    assert image.read_bytes() == bytes(8 << 12) + data[8 << 12 :]
    for device in ("virtio0", "virtio1"):
        assert interrupts(text, f"Level     {device}") > 0
    assert "MSI" not in text
    assert "nobody cared" not in text


def test_kvm_takes_our_routes_and_leaves_what_is_masked_pending(
    lab_host: Callable[[str], Host],
) -> None:
    done = lab_host("fwb").run(["python3", "-"], stdin=MSI_DELIVERY.read_bytes(), timeout=120)
    assert done.status == 0, done.stderr.decode()
    assert json.loads(done.stdout) == {
        "limit": ["ok", "EINVAL"],
        "stays": [True, False, True, False, True],
        "pending": [False, None, False, None, False],
        "pin": False,
        "shared": False,
        "detached": True,
    }


# --- a hostile guest ----------------------------------------------------------------------------

HOSTILE = """
.set FUNCTION, 0x3f008000    // 00:01.0 in ECAM
.set WINDOW, 0x10000000      // the 32-bit window
    mov x1, #1
    adr x2, user
    mov x3, #0
    psci CPU_ON
    cbnz x0, .
    ldr x10, =FUNCTION
    ldr w11, =WINDOW
    str w11, [x10, #0x10]
    str wzr, [x10, #0x14]
    mov w12, #6
    mov w13, #{toggles}
toggle:                      // memory on and off, while the other uses the BAR
    strh w12, [x10, #4]
    strh wzr, [x10, #4]
    subs w13, w13, #1
    b.ne toggle
    strh w12, [x10, #4]
    adr x14, places          // and then to where no BAR may be, and back
move:
    ldr w15, [x14], #4
    ldr w16, [x14], #4
    str w15, [x10, #0x10]
    str w16, [x10, #0x14]
    str w11, [x10, #0x10]
    str wzr, [x10, #0x14]
    adr x17, end
    cmp x14, x17
    b.ne move
    mov w13, #8              // MSI-X on, and its table full of garbage
    mov w15, #0x8000
    strh w15, [x10, #0x42]
    add x17, x11, #0x4000
garbage:
    ldr w16, =0x40001000     // RAM
    str w16, [x17]
    str wzr, [x17, #4]
    str w13, [x17, #8]
    str wzr, [x17, #12]
    subs w13, w13, #1
    b.ne garbage
    mov w13, #2              // every register of configuration space, twice
scribble:
    mov x15, #0
    mov w16, #-1
each:
    cmp x15, #4
    b.eq skip                // but for the command: it would end at once
    str w16, [x10, x15]
skip:
    add x15, x15, #4
    cmp x15, #0x1000
    b.ne each
    subs w13, w13, #1
    b.ne scribble
    ldr w0, [x10]
    ldr w1, =0x10441af4      // it is still who it was
    cmp w0, w1
    b.ne .
    psci SYSTEM_OFF
user:
    ldr x10, =WINDOW
    mov w12, #0x5a
    add x13, x10, #0x3000
use:
    ldrb w11, [x10, #0x14]   // its status: 0, or ones while it is not there
    strh wzr, [x13]          // a notification
    cbz w11, use
    cmp w11, #0xff
    b.eq use
    b .
.ltorg
.balign 8
places:
    .word 0x40000000, 0      // RAM
    .word 0x08000000, 0      // the GIC
    .word 0x09000000, 0      // the UART
    .word 0x3f000000, 0      // ECAM
    .word 0, 0
    .word 0x0000c000, 0x100  // 2^40
    .word 0xffff0000, 0xffffffff
    .word 0x3eff8000, 0      // I/O
end:
"""
PLACES = 8


def test_a_guest_cannot_put_a_bar_where_none_may_be_nor_end_the_machine(
    lab_host: Callable[[str], Host], tmp_path: Path
) -> None:
    host = lab_host("fwb")
    guest = assemble(tmp_path, HOSTILE.format(toggles=100))
    command = ["pyvmm", "run", "--memory", "64M", "--cpus", "2", "--transport", "pci", "--rng"]
    done = host.run([*command, "--events", EVENTS, str(guest)], timeout=BOOT)
    assert done == Completed(0, b"", b"")
    happened = events(host)
    assert PLACES <= happened["pci-bar-refused"] <= COMPLAINTS
    assert 1 <= happened["msi-refused"] <= COMPLAINTS
    complaints = {"pci-bar-refused", "msi-refused"}
    assert set(happened) - PHASES == complaints | {"power-on", "system-event", "ended"}


# --- a BAR of 128 GiB ---------------------------------------------------------------------------

GIB = 1 << 30

SPARSE = """
.set FUNCTION, 0x3f008000
    ldr x10, =FUNCTION
    ldr x11, ={base}
    lsr x12, x11, #32
    str w11, [x10, #0x10]
    str w12, [x10, #0x14]
    mov w12, #2
    strh w12, [x10, #4]
    mov w13, #0x11
    strb w13, [x11]
    ldr x14, ={size}
    mov w13, #0x22
    add x15, x11, x14, lsr #1
    strb w13, [x15]
    add x15, x11, x14
    mov w13, #0x33
    strb w13, [x15, #-1]!
    ldrb w16, [x15]
    cmp w16, #0x33
    b.ne .
    psci SYSTEM_OFF
"""


def sparse(host: Host, size: int, cmdline: str, *files: Path) -> tuple[str, dict[str, Any]]:
    names = [there(file) for file in files]
    command = ["python3", there(SPARSE_BAR), hex(size), cmdline, *names]
    done = host.run(command, timeout=BOOT)
    assert done.status == 0, done.stdout.decode() + done.stderr.decode()
    *said, found = done.stdout.decode(errors="replace").strip().splitlines()
    return "\n".join(said), json.loads(found)


def test_a_bar_of_128_gib_is_placed_and_mapped_in_no_time(
    lab_host: Callable[[str], Host], tmp_path: Path
) -> None:
    host = lab_host("fwb")
    took = {}
    for size, base in ((2 << 20, 4 * GIB), (128 * GIB, 128 * GIB)):
        flat = assemble(tmp_path, SPARSE.format(base=hex(base), size=hex(size)))
        _, found = sparse(host, size, "", flat)
        assert found["ending"] == "powered-off"
        assert found["bases"] == [base]
        assert found["written"] == [0x11, 0x22, 0x33]
        took[size] = max(found["mapped"])
    assert max(took.values()) < 1.0, took


def test_linux_finds_a_place_for_a_bar_of_128_gib(lab_host: Callable[[str], Host]) -> None:
    host = lab_host("fwb")
    guest = fixture.guest(packages=["pciutils"], script="lspci -v; cat /proc/iomem")
    cmdline = "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"
    text, found = sparse(host, 128 * GIB, cmdline, guest.kernel, guest.initrd)
    base, size = found["window"]
    (address,) = re.findall(r"Memory at ([0-9a-f]+) \(64-bit.*\[size=128G\]", text)
    assert base <= int(address, 16) <= base + size - 128 * GIB
    assert int(address, 16) % (128 * GIB) == 0
