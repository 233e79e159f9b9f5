"""``import vmm``: the same program drives a machine in this process and one in a lab host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import vmm
from tests.lab.guest.flat_guest import (
    CATCH,
    COUNT,
    ECHO,
    PANIC,
    POWER_OFF,
    RESET,
    SPIN,
    assemble,
)
from tests.recorded import PHASES
from vmm.kvm.exits import MmioRead, MmioWrite, SystemEvent
from vmm.lab.host.emulated_host import Host

pytestmark = pytest.mark.lab

UART = 0x0B00_0000
COUNTS = 0x4100_0000
PATIENCE = 120.0

DEVICE = """
    ldr x2, =0x0b000000
    mov w1, #5
    strb w1, [x2]
    ldr w3, [x2, #4]
    str w3, [x2, #8]
    psci SYSTEM_OFF
"""
"""Store 5, load a word, store it elsewhere."""

NATIVE = Path(__file__).parent / "inside" / "library.py"


@pytest.fixture
def lab(lab_host: Callable[[str], Host]) -> Iterator[vmm.Lab]:
    with vmm.Lab(host=lab_host("fwb")) as lab:
        yield lab


@pytest.fixture
def machine(lab: vmm.Lab, tmp_path: Path) -> Iterator[Callable[..., vmm.Machine]]:
    made: list[vmm.Machine] = []

    def machine(source: str, **options: Any) -> vmm.Machine:
        made.append(lab.Machine(assemble(tmp_path, source), memory="64M", **options))
        return made[-1]

    yield machine
    for each in made:
        each.close()


def test_a_console_is_talked_with(machine: Callable[..., vmm.Machine]) -> None:
    echo = machine(ECHO)
    assert echo.state == "new"
    echo.start()
    echo.console.expect("ready:")
    text = b"a long text " * 300 + b"."  # longer than the FIFO: the rest waits for room
    echo.console.send(text)
    echo.console.expect(r"\.")
    assert echo.console.output == b"ready:" + text
    echo.console.send("\4")
    assert echo.wait(PATIENCE) == echo.ending == "powered-off"
    assert echo.state == "ended"
    with pytest.raises(vmm.NotSaidError, match="the machine has powered-off, without 'more'"):
        echo.console.expect("more")
    seen = [each["event"] for each in echo.events if each["event"] not in PHASES]
    assert seen == ["power-on", "system-event", "ended"]


def test_a_paused_machine_shows_and_takes_registers_and_memory(
    machine: Callable[..., vmm.Machine],
) -> None:
    count = machine(COUNT.format(cpus=3), cpus=3)
    with pytest.raises(vmm.UserError, match="before the start"):
        _ = count.vcpus[0].registers["pc"]
    count.start()
    while any(count.memory[at : at + 4] == bytes(4) for at in range(COUNTS, COUNTS + 192, 64)):
        pass
    with pytest.raises(vmm.UserError, match="pause the machine"):
        _ = count.vcpus[0].registers["pc"]
    count.pause()
    assert count.state == "paused"
    for number, vcpu in enumerate(count.vcpus):
        assert 0x4008_0000 <= vcpu.registers["pc"] < 0x4008_1000
        assert vcpu.registers["x0"] == number
        assert vcpu.registers.fields("pstate")["EL"] == 1
        assert vcpu.registers["MPIDR_EL1"] & 0xFF == number
    names = list(count.vcpus[0].registers)
    assert {"x30", "sp", "ESR_EL1", "CNTVCT_EL0"} <= set(names)
    assert len(names) == len(set(names)) > 100
    with pytest.raises(vmm.UserError, match="NONE: there is no such register"):
        _ = count.vcpus[0].registers["NONE"]
    count.vcpus[1].registers["x5"] = 1 << 40
    count.memory[0x4200_0000:0x4200_0004] = b"pyvm"
    assert count.memory[0x4200_0000:0x4200_0004] == b"pyvm"
    with pytest.raises(vmm.GuestError):
        _ = count.memory[0x1000_0000:0x1000_0004]
    count.resume()
    with pytest.raises(vmm.UserError, match="not paused"):
        count.resume()
    while int.from_bytes(count.memory[0x4100_0040:0x4100_0048], "little") <= 1 << 40:
        pass
    count.stop()
    assert count.wait(PATIENCE) == "quit"


def test_one_vcpu_steps_while_the_others_wait(machine: Callable[..., vmm.Machine]) -> None:
    """COUNT's loop is five instructions: add, isb, mrs, stp, b."""
    count = machine(COUNT.format(cpus=2), cpus=2)
    with pytest.raises(vmm.UserError, match="before the start"):
        count.step()
    count.start()
    while any(count.memory[at : at + 4] == bytes(4) for at in range(COUNTS, COUNTS + 128, 64)):
        pass
    with pytest.raises(vmm.UserError, match="pause the machine"):
        count.step()
    count.pause()
    one, other = (vcpu.registers for vcpu in count.vcpus)
    still = other["x5"], other["pc"]
    places, rounds = [one["pc"]], one["x5"]
    for _ in range(10):
        count.step()
        places.append(one["pc"])
    assert len(set(places)) == 5
    assert places[:5] == places[5:10]
    assert {(after - before) % 20 for before, after in pairwise(places)} == {4}
    assert one["x5"] == rounds + 2
    assert (other["x5"], other["pc"]) == still
    count.step(1)
    assert other["pc"] != still[1]
    with pytest.raises(vmm.UserError, match="there is no vCPU 7"):
        count.step(7)
    count.pause()
    with pytest.raises(vmm.UserError, match="paused by somebody else"):
        count.step()
    count.resume()
    count.resume()
    rounds = one_count(count)
    while one_count(count) < rounds + 100:
        pass


def one_count(machine: vmm.Machine) -> int:
    return int.from_bytes(machine.memory[COUNTS : COUNTS + 8], "little")


def test_accesses_and_exits_come_to_functions(machine: Callable[..., vmm.Machine]) -> None:
    guest = machine(DEVICE)
    accesses: list[tuple[int, int, int | None]] = []
    exits: list[object] = []
    told: list[str] = []

    @guest.on_mmio(range(UART, UART + 0x1000))
    def answer(access: vmm.Access) -> int | None:
        accesses.append((access.address, access.size, access.value))
        return None if access.is_store else 0x1_2345_6789

    @guest.on_event
    def event(fields: Mapping[str, Any]) -> None:
        told.append(fields["event"])

    @guest.on_exit
    def exit_(vcpu: int, exit_: object) -> None:
        exits.append((vcpu, exit_))

    guest.start()
    assert guest.wait(PATIENCE) == "powered-off"
    assert [name for name in told if name not in PHASES] == ["power-on", "system-event", "ended"]
    assert accesses == [(UART, 1, 5), (UART + 4, 4, None), (UART + 8, 4, 0x2345_6789)]
    assert exits == [
        (0, MmioWrite(UART, 1, 5)),
        (0, MmioRead(UART + 4, 4)),
        (0, MmioWrite(UART + 8, 4, 0x2345_6789)),
        (0, SystemEvent(1, (0,))),
    ]


def test_what_is_taken_cannot_be_had(machine: Callable[..., vmm.Machine]) -> None:
    guest = machine(POWER_OFF)
    for base in (0x4000_0000, 0x0900_0000):
        with pytest.raises(vmm.UserError, match="choose another address"):
            guest.on_mmio(range(base, base + 0x1000))(lambda _: None)


def test_a_handler_that_fails_is_the_machines_end(machine: Callable[..., vmm.Machine]) -> None:
    guest = machine(DEVICE)

    @guest.on_mmio(range(UART, UART + 0x1000))
    def answer(access: vmm.Access) -> int:
        raise ZeroDivisionError(f"at {access.address:#x}")

    guest.start()
    with pytest.raises(vmm.HostError, match="ZeroDivisionError: at 0xb000000"):
        guest.wait(PATIENCE)


@pytest.mark.parametrize(
    ("source", "options", "ending"),
    [
        (PANIC, {}, "panicked"),
        (RESET, {"no_reboot": True}, "reset"),
        (CATCH.format(misdeed="ldr x0, =NOWHERE; br x0"), {}, "powered-off"),
    ],
)
def test_a_guest_ends_as_the_command_line_says_it_does(
    machine: Callable[..., vmm.Machine], source: str, options: dict[str, object], ending: str
) -> None:
    guest = machine(source, **options)
    guest.start()
    assert guest.wait(PATIENCE) == ending


def test_the_guests_fault_is_raised_to_whoever_waits(machine: Callable[..., vmm.Machine]) -> None:
    guest = machine(RESET)
    guest.start()
    with pytest.raises(vmm.GuestError, match="has reset 5 times in a row"):
        guest.wait(PATIENCE)


def test_closing_ends_a_machine_that_runs(machine: Callable[..., vmm.Machine]) -> None:
    guest = machine(SPIN)
    guest.start()
    guest.close()
    guest.close()
    with pytest.raises(vmm.HostError):
        guest.pause()


def test_what_cannot_be_built_is_an_error_and_nothing_stays(lab: vmm.Lab, tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(vmm.UserError, match=r"nothing\.img"):
        lab.Machine(tmp_path / "nothing.img")
    assert threading.active_count() <= before


def test_it_is_the_same_without_a_lab(lab: vmm.Lab, tmp_path: Path) -> None:
    """The calls of above, in one process with the machine."""
    guests = tmp_path / "echo", tmp_path / "device"
    for directory, source in zip(guests, (ECHO, DEVICE), strict=True):
        directory.mkdir()
        assemble(directory, source)
    done = lab.run(["python3", str(NATIVE), *map(str, guests)], timeout=PATIENCE)
    assert done.status == 0, done.stderr.decode()
    assert done.stdout == b"all is well\n"


def test_a_host_of_ones_own_writes_the_files_that_a_machine_names(tmp_path: Path) -> None:
    """And no others: this one is not in the current directory."""
    said = tmp_path / "said"
    guest = assemble(tmp_path, POWER_OFF)
    with vmm.Lab() as lab, lab.Machine(guest, memory="64M", console=[f"file={said}"]):
        assert said.exists()
        assert lab.run(["touch", f"/host{tmp_path.parent}/other"]).status != 0
