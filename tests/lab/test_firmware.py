"""Firmware from flash on real KVM: our own, Debian's edk2 and U-Boot, and Linux behind them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.guest import esp
from tests.lab.guest.flat_guest import assemble
from vmm.lab import cache
from vmm.lab.debian import apt
from vmm.lab.guest import fixture, uki
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside
from vmm.library.command import Command

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

EVENTS = "/run/tmp/firmware-events"
VARIABLES = "/run/tmp/firmware-variables"
BOOT = 200.0


def debian(package: str, name: str) -> Path:
    """Return the file *name* of Debian trixie's *package*, from the cache."""
    (deb,) = apt.fetch([package], suite="trixie", arch="arm64")
    tree = cache.root() / "tools" / f"firmware-{cache.digest(deb.name)}"
    return cache.entry(tree, lambda temporary: apt.unpack([deb], temporary)) / name


def command(firmware: Path, *options: str, memory: str = "512M") -> list[str]:
    fixed = ["--host", "native", "--memory", memory, "--events", EVENTS, "--flash", VARIABLES]
    return ["pyvmm", "run", *fixed, "--firmware", inside(str(firmware.resolve())), *options]


@pytest.fixture
def host(lab_host: Callable[[str], Host]) -> Host:
    """Return a host whose flash is empty."""
    host = lab_host("fwb")
    host.run(["sh", "-c", f"mkdir -p /run/tmp; rm -f {VARIABLES}"], timeout=60)
    return host


def events(host: Host) -> Counter[str]:
    lines = host.run(["cat", EVENTS], timeout=60).stdout.splitlines()
    return Counter(json.loads(line)["event"] for line in lines)


# --- our own: a few instructions ----------------------------------------------------------------

TWICE = """
.set BANK, 0x04000000
.set TREE, 0x40000000
    ldr x10, =BANK
    ldr x11, =TREE
    cmp x0, x11              // the device tree is where firmware looks for it, and x0 says so
    b.ne fail
    ldr w1, [x11]
    ldr w2, =0xedfe0dd0      // its magic number, the other way round
    cmp w1, w2
    b.ne fail
    adr x12, data            // flash has its contents, with no command before
    ldr w1, [x12]
    ldr w2, =0x600dc0de
    cmp w1, w2
    b.ne fail
    ldp x1, x2, [x10, #64]   // two registers at once: only memory can do that
    ldr x3, =0x0123456789abcdef
    cmp x1, x3
    b.eq again
    cmn x1, #1               // erased
    b.ne fail
    ldr w1, =0x00980098
    str w1, [x10]            // query mode
    ldr w1, [x10, #64]
    ldr w2, =0x00510051      // Q
    cmp w1, w2
    b.ne fail
    ldr w1, =0x00ff00ff
    str w1, [x10]
    ldr w1, =0x00e800e8      // two words, by the buffer
    str w1, [x10, #64]
    ldr w1, =0x00010001
    str w1, [x10, #64]
    str w3, [x10, #64]
    lsr x3, x3, #32
    str w3, [x10, #68]
    ldr w1, =0x00d000d0
    str w1, [x10]
    ldr w1, [x10]
    ldr w2, =0x00800080      // done, and no errors
    cmp w1, w2
    b.ne fail
    ldr w1, =0x00900090
    str w1, [x10]            // and it is left telling its identifiers
    psci SYSTEM_RESET
again:
    psci SYSTEM_OFF
fail:
    b fail
.ltorg
.balign 4
data:
    .word 0x600dc0de
"""


def test_firmware_starts_in_flash_and_finds_it_showing_the_array_after_a_reset(
    host: Host, tmp_path: Path
) -> None:
    done = host.run(command(assemble(tmp_path, TWICE), memory="64M"), timeout=BOOT)
    assert done.status == 0, done.stdout + done.stderr
    assert events(host)["power-on"] == 2
    look = f"print(open('{VARIABLES}', 'rb').read() == b'\\xff' * 64 + bytes.fromhex("
    look += "'efcdab8967452301'))"
    assert host.run(["python3", "-c", look], timeout=60).stdout == b"True\n"


# --- Debian's -----------------------------------------------------------------------------------

MODULES = ("virtio_pci", "virtio_mmio", "pci_host_generic", "virtio_blk", "virtio_rng", "efivarfs")

LOOK = r"""
mount -t efivarfs none /sys/firmware/efi/efivars
variable=/sys/firmware/efi/efivars/Pyvmm-0d9e7e6c-6c3f-4f0e-8a5b-6f1f3a1f4b11
if [ -e $variable ]; then
    echo "found $(tail -c +5 $variable)"
else
    printf '\007\000\000\000a value' >$variable && echo written
    dd if=/dev/vda of=/dev/null bs=64k count=16 2>/dev/null
    dd if=/dev/hwrng of=/dev/null bs=64 count=1 2>/dev/null
    lspci -vv
    cat /proc/interrupts
    dmesg | grep 'BAR 0'
    read -r status </sys/firmware/devicetree/base/flash@0/status; echo "flash is $status"
fi
"""


def test_edk2_boots_linux_from_a_disk_and_keeps_its_variables(host: Host, tmp_path: Path) -> None:
    guest = fixture.guest(modules=MODULES, packages=["pciutils"], script=LOOK)
    image = tmp_path / "disk.img"
    cmdline = "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"
    esp.write(image, uki.unified(guest, cmdline))
    firmware = debian("qemu-efi-aarch64", "usr/share/AAVMF/AAVMF_CODE.fd")
    options = ["--transport", "pci", "--rng", "--disk", f"{inside(str(image))},ro"]

    def boot() -> str:
        done = host.run(command(firmware, *options), timeout=BOOT)
        text = done.stdout.decode(errors="replace").replace("\r", "")
        assert done.status == 0, text + done.stderr.decode()
        assert "UEFI firmware (version" in text
        assert "pyvmm guest: Linux" in text
        wrong = ("flash", "vcpu", "guest-error")
        assert not {name for name in events(host) if name.startswith(wrong)}
        return text

    first = boot()
    assert 'starting Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x1,0x0)' in first
    assert "\nwritten\n" in first
    assert "flash is disabled" in first, "edk2 keeps it for itself"
    functions = re.split(r"(?m)^(?=00:\d\d\.\d )", first)[1:]
    assert [function[:7] for function in functions] == ["00:01.0", "00:02.0"]
    for function in functions:
        assert re.search(r"Region 0: Memory at 1000[0-9a-f]{5} \(64-bit", function), function
        assert "MSI-X: Enable+" in function
    placed = dict(re.findall(r"pci (\S+): BAR 0 \[mem 0x(\w+)-\w+ 64bit\](?!: assigned)", first))
    assert set(placed) == {"0000:00:01.0", "0000:00:02.0"}
    assert all(int(address, 16) >= 1 << 32 for address in placed.values()), "edk2 placed them"
    for what in ("virtio0-req", "virtio1-input"):
        counts = re.findall(rf"(?m)^ *\d+: +(\d+) +ITS-PCI-MSIX.* {what}", first)
        assert any(int(count) > 0 for count in counts), what
    assert "\nfound a value\n" in boot()


def test_u_boot_finds_the_flash_and_reads_a_disk(host: Host, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(esp.disk(b"a program"))
    firmware = debian("u-boot-qemu", "usr/lib/u-boot/qemu_arm64/u-boot.bin")
    argv = command(firmware, "--disk", f"{inside(str(image))},ro", memory="256M")
    with Command(host, argv) as talk:
        talk.expect(rb"Flash: 64 MiB")
        talk.expect(rb"Hit any key to stop autoboot")
        talk.send(b"\n")
        talk.expect(rb"=> ")
        talk.send(b"virtio scan; ls virtio 0:1 EFI/BOOT\n")
        talk.expect(rb"9 +bootaa64.efi|9 +BOOTAA64.EFI")
        # The bank's first two sectors are for its environment, and it protects them itself.
        talk.send(b"erase 2:2; cp.b 0x40000000 0x4040000 100; cmp.b 0x40000000 0x4040000 100\n")
        talk.expect(rb"Total of 256 byte\(s\) were the same")
        talk.send(b"poweroff\n")
        assert talk.finish() == 0
    found = host.run(["stat", "-c", "%s", VARIABLES], timeout=60).stdout
    assert 0x4_0000 < int(found) <= 0x4_0100
