"""Every kind of file that `pyvmm run` knows starts its guest as the boot protocol says."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.arm64.kernel_files import COMPRESSIONS, arm64_image, uki, zboot
from vmm.lab.guest.uki import guest_image
from vmm.library.command import Command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmm.lab.host.emulated_host import Host

pytestmark = pytest.mark.lab

RAM = 0x4000_0000
EL1_MASKED = 0x3C0
COMMAND_LINE = "none of this is read"

# Prints its start state, then powers off. Position-independent; writes to the UART's FIFO.
REPORT = r"""
typedef unsigned long u64;
asm(".global _start\n"
    "_start: adr x4, _start\n"
    "        add x5, x4, #0x10000\n"
    "        mov sp, x5\n"
    "        b report\n");

static void put(char character) { *(volatile char *)0x9000000 = character; }

static void say(const char *name, u64 value)
{
    while (*name)
        put(*name++);
    put('=');
    for (int shift = 60; shift >= 0; shift -= 4)
        put("0123456789abcdef"[value >> shift & 15]);
    put(' ');
}

void report(u64 x0, u64 x1, u64 x2, u64 x3, u64 start)
{
    u64 daif, el;
    asm("mrs %0, daif" : "=r"(daif));
    asm("mrs %0, CurrentEL" : "=r"(el));
    say("start", start);
    say("x0", x0);
    say("magic", *(unsigned *)x0);
    say("x123", x1 | x2 | x3);
    say("daif", daif);
    say("el", el >> 2);
    put('\n');
    register u64 function asm("x0") = 0x84000008; /* PSCI SYSTEM_OFF */
    asm volatile("hvc #0" : "+r"(function));
    for (;;) ;
}
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("report")
    source, program, flat = (directory / name for name in ("report.c", "report", "report.bin"))
    source.write_text(REPORT)
    options = (
        "-O1 -mcmodel=tiny -mgeneral-regs-only -mstrict-align -ffreestanding -fno-pic"
        " -fno-toplevel-reorder -fno-asynchronous-unwind-tables -nostdlib -static"
        " -Wl,-Ttext=0,--build-id=none,-zmax-page-size=4096"
    )
    compiler = ["aarch64-linux-gnu-gcc", *options.split()]
    subprocess.run([*compiler, "-o", str(program), str(source)], check=True)
    objcopy = ["aarch64-linux-gnu-objcopy", "-O", "binary"]
    subprocess.run([*objcopy, str(program), str(flat)], check=True)
    return flat.read_bytes()


def image_of(code: bytes, text_offset: int = 0, *, efi: bool = False) -> bytes:
    return arm64_image(body=code + bytes(-len(code) % 16), text_offset=text_offset, efi=efi)


FORMS: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "flat": (lambda code: code, 0x80000),
    "Image": (image_of, 64),
    "Image with text_offset": (lambda code: image_of(code, 0x123000), 0x123000 + 64),
    "Image with EFI stub": (lambda code: image_of(code, efi=True), 128),
    "gzip": (lambda code: COMPRESSIONS["gzip"](image_of(code)), 64),
    "xz": (lambda code: COMPRESSIONS["xz"](image_of(code)), 64),
    "zstd": (lambda code: COMPRESSIONS["zstd"](image_of(code)), 64),
    "gzip of flat": (COMPRESSIONS["gzip"], 0x80000),
    "EFI zboot": (lambda code: zboot(COMPRESSIONS["gzip"](image_of(code)), "gzip"), 64),
    "UKI": (lambda code: uki(image_of(code), cmdline=COMMAND_LINE.encode()), 64),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_starts_at_its_place_in_the_state_it_expects(
    lab_host: Callable[[str], Host], tmp_path: Path, code: bytes, form: str
) -> None:
    make, start = FORMS[form]
    path = tmp_path / "guest.img"
    path.write_bytes(make(code))
    with Command(lab_host("fwb"), ["pyvmm", "run", "--memory", "64M", str(path)]) as console:
        said = console.expect(rb"start=.*\n", 60)[0].decode()
        assert console.finish(60) == 0, console.story()
    found = {name: int(value, 16) for name, value in re.findall(r"(\w+)=([0-9a-f]{16})", said)}
    assert RAM < found.pop("x0") < RAM + (64 << 20)
    assert found == {
        "start": RAM + start,
        "magic": int.from_bytes(bytes.fromhex("d00dfeed"), "little"),
        "x123": 0,
        "daif": EL1_MASKED,
        "el": 1,
    }


def test_the_guest_image_boots_by_itself_to_a_shell(lab_host: Callable[[str], Host]) -> None:
    with Command(lab_host("fwb"), ["pyvmm", "run", str(guest_image())]) as console:
        console.expect(rb"guest:\S*# ")
        console.send(b"echo 6 x 7 = $((6 * 7))\n")
        console.expect(rb"\n6 x 7 = 42\r\n")
        console.send(b"exit\n")
        assert console.finish(60) == 0, console.story()
