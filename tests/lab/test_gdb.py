"""The real gdb debugs real guests, through `pyvmm run --host lab --gdb`; and the watchdog."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.lab.guest import symbol_file
from tests.lab.guest.flat_guest import CATCH, PANIC, SLEEP, SPIN, assemble
from tests.lab.program import PATIENCE, PYVMM, Program
from vmm.lab.debian.prefix import prefix
from vmm.lab.guest import fixture

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("kept"),
]

ENTRY = 0x4008_0000
"""Where a flat binary begins."""

COUNTER = """
again:
    add x0, x0, #1
    b again
"""

STORES = """
    ldr x1, =0x40100000
    mov x2, #0x1234
    msr sp_el0, x2
    mov x2, #0
again:
    add x2, x2, #1
    str x2, [x1]
    ldr x3, [x1]
    b again
"""


class Run(Program):
    """``pyvmm run --host lab`` with *words*. A context manager: ends it."""

    def __init__(self, *words: str | Path) -> None:
        super().__init__([PYVMM, "run", "--host", "lab", *map(str, words)])

    def __exit__(self, *_: object) -> None:
        if self.program.poll() is None:
            self.program.terminate()
        self.program.communicate()

    def end(self, typed: bytes = b"") -> int:
        """Type *typed*, and return the status with which it ends."""
        said, _ = self.program.communicate(typed, timeout=PATIENCE)
        self.seen += said
        return self.program.returncode


def gdb(socket: Path, commands: Sequence[str], symbols: Path | None = None) -> str:
    """Let gdb, which knows *symbols*, carry out *commands* at *socket*; return what it said."""
    tools = prefix("gdb-multiarch", ["gdb-multiarch"])
    argv = [*tools.command("usr/bin/gdb-multiarch"), "-nx", "-q", "-batch"]
    argv += [f"--data-directory={tools.root}/usr/share/gdb"]
    words = ["set architecture aarch64", f"set remotetimeout {PATIENCE:.0f}"]
    words += [f"file {symbols}"] if symbols else []
    for command in (*words, f"target remote {socket}", *commands):
        argv += ["-ex", command]
    done = subprocess.run(
        argv,
        env={**os.environ, "PYTHONHOME": f"{tools.root}/usr"},
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.stdout + done.stderr


def until(path: Path, run: Run) -> None:
    """Wait until *path* exists: the host end of a guest that is about to run."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline
        assert run.program.poll() is None, (run.end(), run.seen)
        time.sleep(0.05)


INTERRUPT = (
    "python import os, signal, threading; "
    f"threading.Timer(2, lambda: os.kill(os.getpid(), {int(signal.SIGINT)})).start()"
)


def test_a_running_guest_is_interrupted_and_goes_on_when_gdb_leaves(tmp_path: Path) -> None:
    socket, image = tmp_path / "gdb", assemble(tmp_path, COUNTER)
    counts = []
    with Run(image, "--cpus", "2", "--gdb", socket) as run:
        until(socket, run)
        for _ in range(2):
            said = gdb(
                socket,
                [
                    "info threads",  # which selects the other vCPU last
                    INTERRUPT,
                    "continue",
                    "print $x0",
                    "stepi",
                    "thread 2",
                    "stepi",
                    "detach",
                ],
            )
            assert re.search(r'Thread 2 "vCPU 1" \(vCPU 1, powered off\)', said), said
            assert re.search(r'Thread 1 "vCPU 0" received signal SIGINT', said), said
            assert "vCPU 1 is powered off" in said
            assert "detached" in said
            counts.append(int(re.search(r"\$1 = (\d+)", said)[1]))  # type: ignore[index]
    assert 0 < counts[0] < counts[1]


def test_hardware_breakpoints_watchpoints_and_registers(tmp_path: Path) -> None:
    socket, image = tmp_path / "gdb", assemble(tmp_path, STORES)
    with Run(image, "--gdb", f"{socket},wait") as run:
        until(socket, run)
        said = gdb(
            socket,
            [
                f"hbreak *{ENTRY + 8}",
                "continue",
                "print/x $x1",
                "delete",
                "watch *(long*)0x40100000",
                "continue",
                "continue",
                "set $x2 = 7",
                "print/x $SP_EL0",
                "delete",
                "kill",
            ],
        )
        assert "Breakpoint 1" in said, said
        assert "= 0x40100000" in said
        assert re.findall(r"New value = (\d+)", said) == ["1", "2"], said
        assert "= 0x1234" in said
        assert run.end() == 130


KERNEL = ("_text", "_einittext", "vfs_read", "ksys_read", "jiffies_64")
"""Symbols of a kernel that its test speaks of."""

# BusyBox's cat would not do: it calls sendfile(2), which does not come to vfs_read.
READER = f"""
grep -E ' ({"|".join(KERNEL)})$' /proc/kallsyms; echo that is all
while read -r up </proc/uptime; do :; done &
"""


def test_gdb_debugs_a_debian_kernel_with_four_vcpus(tmp_path: Path) -> None:
    socket, symbols, task = tmp_path / "gdb", tmp_path / "symbols", tmp_path / "task"
    guest = fixture.guest(modules=(), packages=(), script=READER)
    words = ["--cmdline", "console=ttyAMA0 quiet nokaslr panic=-1", "--cpus", "4"]
    with Run(guest.kernel, "--initrd", guest.initrd, "--gdb", socket, *words) as run:
        run.expect("that is all")
        at = symbol_file.addresses(run.seen.decode(errors="replace").replace("\r", ""))
        assert set(KERNEL) <= set(at)
        symbol_file.write(symbols, at)
        said = gdb(
            socket,
            [
                "break *vfs_read",
                "continue",
                "info threads",
                f"dump binary memory {task} $SP_EL0 $SP_EL0+0x2000",
                "stepi",
                # A pending interrupt is taken first: the vector of IRQs from EL1 with SP_EL1.
                f"print $pc == {at['vfs_read'] + 4:#x} || $pc == $VBAR_EL1 + 0x280",
                "print $TCR_EL1 != 0 && ($cpsr & 0xc) == 4",
                "hbreak *$lr",
                "delete 1",
                "continue",
                "delete",
                "watch *(long*)&jiffies_64",
                "continue",
                "delete",
                INTERRUPT,
                "continue",
                f"monitor translate {at['vfs_read']:#x}",
                "detach",
            ],
            symbols,
        )
        assert re.search(r'Thread \d "vCPU \d" hit Breakpoint 1, 0x\w+ in vfs_read', said), said
        assert len(re.findall(r'Thread \d "vCPU \d" \(vCPU \d, on\)', said)) == 4, said
        # SP_EL0 is `current`, a task_struct, which has the program's name.
        assert re.search(rb"(init|sh)\0", task.read_bytes())
        assert "$1 = 1" in said, said
        assert "$2 = 1" in said, said
        assert re.search(r"hit (Temporary )?Breakpoint 2, 0x\w+ in ksys_read", said), said
        watched = re.search(r"Old value = (\d+)\nNew value = (\d+)", said)
        assert watched, said
        assert int(watched[2]) > int(watched[1])
        assert "received signal SIGINT" in said
        assert re.search(rf"{at['vfs_read']:#x} is 0x4\w+: level \d", said), said
        assert "detached" in said
        assert run.end(b"poweroff\n") == 0, run.seen


def test_what_gdb_asked_the_cpu_for_outlives_a_reset(tmp_path: Path) -> None:
    socket, image = tmp_path / "gdb", assemble(tmp_path, STORES)
    with Run(image, "--gdb", f"{socket},wait") as run:
        until(socket, run)
        said = gdb(
            socket,
            [
                f"hbreak *{ENTRY + 8}",
                "continue",
                "monitor reset",
                "maintenance flush register-cache",
                "print $pc",
                "continue",
                "delete",
                "rwatch *(long*)0x40100000",
                "continue",
                "delete",
                "awatch *(long*)0x40100000",
                "continue",
                "kill",
            ],
        )
    assert said.count(f"Breakpoint 1, {ENTRY + 8:#018x}") == 2, said
    assert f"$1 = (void (*)()) {ENTRY:#x}\n" in said
    assert re.search(r"\nHardware read watchpoint 2: .*\n\nValue = \d+\n", said), said
    assert re.search(r"\nHardware access .* watchpoint 3: .*\n\nOld value = \d+\n", said), said


def test_a_guests_own_brk_reaches_its_handler(tmp_path: Path) -> None:
    """Gdb's breakpoints have KVM take every BRK; this one is the guest's."""
    # What would not run is no image; a branch to a register ends that check.
    misdeed = "adr x3, 2f; br x3; 2: brk #0x800"
    socket, image = tmp_path / "gdb", assemble(tmp_path, CATCH.format(misdeed=misdeed))
    with Run(image, "--gdb", f"{socket},wait") as run:
        until(socket, run)
        said = gdb(
            socket,
            [
                f"break *{ENTRY + 4}",
                f"break *{ENTRY + 0x1000}",
                "continue",
                "x/i $pc",
                "delete 1",
                "continue",
            ],
        )
        assert f"Breakpoint 1, {ENTRY + 4:#018x}" in said, said
        assert "exited normally" in said
        assert run.end() == 0
        assert run.seen.endswith(b"<"), "the class of a BRK: 0x3c"


def test_gdb_sees_a_panic_before_the_machine_ends(tmp_path: Path) -> None:
    socket, image = tmp_path / "gdb", assemble(tmp_path, PANIC)
    with Run(image, "--gdb", f"{socket},wait") as run:
        until(socket, run)
        said = gdb(socket, ["continue", "print/x $x1", "continue"])
        assert "the guest has panicked; it ends when you continue" in said, said
        assert "SIGABRT" in said
        assert "= 0x1" in said
        assert run.end() == 4


@pytest.mark.parametrize("source", [SPIN, SLEEP])
def test_the_watchdog_tells_a_loop_with_interrupts_off_from_sleep(
    tmp_path: Path, source: str
) -> None:
    image, events, symbols = assemble(tmp_path, source), tmp_path / "events", tmp_path / "map"
    symbols.write_text(f"{ENTRY:x} T the_loop\n{ENTRY + 0x100:x} T behind\n")
    watchdog = f"1,symbols={symbols}"
    with Run(image, "--watchdog", watchdog, "--timeout", "8", "--events", events) as run:
        assert run.end() == 124, run.seen
    stuck = [
        each
        for line in events.read_text().splitlines()
        if (each := json.loads(line))["event"] == "vcpu-stuck"
    ]
    if source is SLEEP:
        assert not stuck
        return
    assert stuck[0]["pc"] == ENTRY
    assert stuck[0]["backtrace"][0] == "the_loop+0x0"
    assert len(stuck) == 1, "it is told once"
    assert b"watchdog: vCPU 0 has run with interrupts off for 1 s, at the_loop+0x0" in run.seen
