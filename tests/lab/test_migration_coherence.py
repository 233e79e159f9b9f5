"""A guest without caches moves: what it wrote arrives if maintenance is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.guest.flat_guest import assemble
from tests.lab.moving import inside, place, wait_for_socket
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside as in_host
from vmm.library.command import Command

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

ROUNDS = """
.set DATA, 0x41000000        // 16 MiB into RAM
    ldr x2, =UART
    mov w1, #0x301
    str w1, [x2, #0x30]
    mov x5, #0               // the round: what each word is before it
round:
    ldr x0, =DATA
    mov x1, #0x20000
word:
    ldr x3, [x0]
    cmp x3, x5
    b.ne broken
    add x4, x5, #1
    str x4, [x0], #8
    subs x1, x1, #1
    b.ne word
    add x5, x5, #1
    mov w1, #'.'
    strb w1, [x2]
    ldr w1, [x2, #0x18]
    tbnz w1, #4, round       // RXFE: nothing was typed
    psci SYSTEM_OFF
broken:
    mov w1, #'B'
    strb w1, [x2]
    psci SYSTEM_OFF
"""
"""Count in each word of 1 MiB; say ``.`` after each round, and ``B`` if a word is not its count."""

WITHOUT_READS = """
from vmm.coherence.ledger import Ledger
Ledger.before_read = lambda *_: None
from vmm.cli import main
main()
"""
"""pyvmm without the maintenance that is owed before a read."""


@pytest.mark.profile("nofwb")
@pytest.mark.parametrize(
    ("source", "lasts"),
    [(["pyvmm"], True), (["python3", "-c", WITHOUT_READS], False)],
    ids=["maintained", "not before reads"],
)
def test_what_a_guest_without_caches_wrote_moves(
    lab_host: Callable[[str], Host],
    tmp_path: Path,
    source: list[str],
    lasts: bool,  # noqa: FBT001  (a parameter)
) -> None:
    """Without FEAT_S2FWB the source owes maintenance before it reads.

    That after writes at the destination cannot be missed here: it comes before the guest runs, and
    KVM cleans each page that it maps first, which the sanitizer does as well.
    """
    host = lab_host("nofwb")
    directory, image = place(host), assemble(tmp_path, ROUNDS)
    run = ["run", "--host", "native", "--name", "without-caches", "--memory", "32M"]
    there = ["run", "--host", "native", "--incoming", "unix:socket"]
    start = [*source, *run, "--coherency-sanitizer", in_host(image)]
    with (
        Command(host, inside(directory, start)) as here,
        Command(host, inside(directory, ["pyvmm", *there])) as other,
    ):
        here.expect(rb"\.{3}")
        wait_for_socket(host, f"{directory}/socket")
        move = ["pyvmm", "migrate", "without-caches", "unix:socket", "--host", "native"]
        moved = host.run(inside(directory, [*move, "--downtime", "2000"]))
        assert moved.status == 0, moved.stderr.decode() + here.story() + other.story()
        assert here.finish() == 0, here.story()
        assert b"B" not in bytes(here.output)
        other.expect(rb"\.{3}" if lasts else rb"B")
        if lasts:
            other.send(b"\n")
        assert other.finish() == 0, other.story()
        assert (b"B" in bytes(other.output)) is not lasts
