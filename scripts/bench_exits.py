"""Measure what an exit costs beyond KVM_RUN itself, and how long a kick takes.

Natively, on an x86-64 /dev/kvm, with the smallest guest there is: a vCPU comes out of reset in
real mode at 0xFFFFFFF0, and runs a few instructions from a page of ours:

            mov cx, BURST
    again:  mov [DEVICE], ax        an exit each, for there is no memory (or mov ax, [DEVICE])
            loop again
            mov [MARK], ax          one more, by which a burst is told from the next
            jmp ...

The same bursts are run by a bare loop in C and by pyvmm, in turns; for a doorbell the bare loop
writes to an eventfd as well, for that is the kernel's part of it. What a burst takes when nothing
interferes, its lower decile, is compared; the quartiles beside it are of differences pair by pair.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from threading import Semaphore, Thread
from typing import TYPE_CHECKING

from bench_report import Figure, Report, percentile, quartiles, undisturbed

from vmm._native import ffi as native
from vmm.bus import MmioBus
from vmm.control.server import Server
from vmm.events import Events
from vmm.kvm.exit_observer import ExitObserver
from vmm.kvm.exits import Interrupted
from vmm.kvm.mmio_fastpath import MmioFastpath, Shadow, Sink, ToEventfd, ToSink
from vmm.kvm.system import System
from vmm.machine.vcpu_thread import VcpuThread
from vmm.memory import Mapping

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from vmm.kvm.vcpu import Vcpu

GROUP = "exits, beyond KVM_RUN in a bare loop in C (natively)"
PYTHON_TARGET, C_TARGET = 4.0, 0.3
"""Microseconds an exit, beyond KVM_RUN."""
COUNTED = "counted, beyond one that is not"
BESIDE = "beside an idle control socket, beyond one without"
DOORBELL = "C, doorbell (beyond its write, too)"
DEVICE, MARK = 0x1000, 0x2000
ROUNDS = 200
BURST = 200
"""Exits in one burst: two milliseconds, so that some are not interrupted on a busy machine."""

ROM, ROM_SIZE = 0xFFFF_0000, 0x1_0000
RESET_VECTOR = 0xFFF0
STORE, LOAD = 0xA3, 0xA1  # mov [disp16], ax and mov ax, [disp16]
SPIN = b"\xeb\xfe"  # jmp to itself


def measure(report: Report, options: argparse.Namespace) -> None:
    """Add figures for exits and kicks to *report*."""
    rounds = options.rounds or ROUNDS
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or os.uname().machine != "x86_64":
        report.note("exits and kicks: not measured, for want of an x86-64 /dev/kvm")
        return
    with ExitStack() as owned:
        guest = owned.enter_context(_guest())
        sink = owned.enter_context(Sink(1 << 16))
        sink.take_stores(take=True)
        bell = os.eventfd(0)
        owned.callback(os.close, bell)
        bare = _Bare(guest.vcpu, bell)
        runner = _Runner(guest.vcpu, sink)
        stores = {
            "Python device": None,
            "C, into a sink": MmioFastpath([ToSink(DEVICE, sink)]),
            DOORBELL: MmioFastpath([ToEventfd(DEVICE, bell)]),
        }
        loads = {"Python device": None, "C, shadow": MmioFastpath([Shadow(DEVICE, 5)])}
        for kind, opcode, tables in (("store", STORE, stores), ("load", LOAD, loads)):
            guest.program(_bursts(opcode))
            report.add(*_compare(kind, bare, runner, tables, rounds))
        guest.program(_bursts(STORE))
        report.add(*_observed(runner, stores["C, into a sink"], rounds))
        guest.program(SPIN)
        report.add(*_kicks(guest.vcpu, 20 * rounds))


class _Guest:
    """A VM with one vCPU and 64 KiB of memory, the reset vector at its end."""

    def __init__(self, vcpu: Vcpu, rom: memoryview) -> None:
        self.vcpu = vcpu
        self._rom = rom
        rom[RESET_VECTOR : RESET_VECTOR + 3] = b"\xe9\x0d\x00"  # jmp 0: the segment wraps

    def program(self, code: bytes) -> None:
        """Make the guest run *code*, which must not end."""
        self._rom[0 : len(code)] = code


@contextmanager
def _guest() -> Iterator[_Guest]:
    with (
        System.open() as system,
        Mapping.anonymous(ROM_SIZE) as mapping,
        system.create_vm() as vm,
    ):
        with native.from_buffer("uint8_t[]", mapping.view) as pointer:
            address = int(native.cast("uintptr_t", pointer))
        vm.set_user_memory_region(0, 0, ROM, ROM_SIZE, address)
        with vm.create_vcpu(0) as vcpu:
            yield _Guest(vcpu, mapping.view)


def _bursts(opcode: int) -> bytes:
    """Assemble the guest that the module's docstring shows."""
    code = b"\xb9" + BURST.to_bytes(2, "little")
    code += bytes([opcode]) + DEVICE.to_bytes(2, "little") + b"\xe2\xfb"
    code += bytes([STORE]) + MARK.to_bytes(2, "little")
    return code + bytes([0xEB, -(len(code) + 2) & 0xFF])


class _Bare:
    """The same in the barest C, bench_bare.c."""

    def __init__(self, vcpu: Vcpu, bell: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            library = f"{directory}/bare.so"
            source = Path(__file__).with_name("bench_bare.c")
            compiler = os.environ.get("CC", "cc")
            subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
            self._c = ctypes.CDLL(library)
        self._page = mmap.mmap(vcpu.fileno(), mmap.PAGESIZE, mmap.MAP_SHARED)
        run = ctypes.byref(ctypes.c_char.from_buffer(self._page))
        self._arguments = vcpu.fileno(), run, ctypes.c_uint64(MARK)
        self._bell = bell

    def lap(self, *, ring: bool) -> float:
        """Run one burst; return its seconds. With *ring*, each exit rings the bell as well."""
        bell = self._bell if ring else -1
        self._c.bare_run(*self._arguments, -1)  # from wherever it is to the start of a burst
        began = time.perf_counter()
        if self._c.bare_run(*self._arguments, bell):
            raise RuntimeError("the guest of the benchmark went astray")
        return time.perf_counter() - began


class _FinishedError(Exception):
    """Ends a vCPU thread."""


class _Register:
    """A device with nothing to do: what is measured is the way to it and back."""

    def __init__(self) -> None:
        self._value = 0

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        self._value = value


class _Marks:
    """Notes when bursts begin, and ends the vCPU thread after one."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002
        return 0

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        self.times.append(time.perf_counter())
        if len(self.times) == 2:
            raise _FinishedError


class _Runner:
    """Runs bursts as a machine does: in a vCPU thread, with a bus."""

    def __init__(self, vcpu: Vcpu, sink: Sink) -> None:
        self._vcpu = vcpu
        self._sink = sink
        self._marks = _Marks()
        self._bus = MmioBus()
        self._bus.attach(MARK, 0x100, self._marks)
        self._bus.attach(DEVICE, 0x100, _Register())
        for base in range(0x4000, 0x8000, 0x1000):  # neighbours, as on a board
            self._bus.attach(base, 0x100, _Register())

    def lap(self, answers: MmioFastpath | None, observer: ExitObserver | None = None) -> float:
        """Run one burst; return its seconds."""
        self._vcpu.set_answers(answers)
        self._vcpu.observe(observer)
        self._marks.times.clear()
        ends: list[object] = []
        thread = VcpuThread(self._vcpu, self._bus, lambda _, reason: ends.append(reason), Events())
        thread.start()
        thread.join()
        if not ends or not isinstance(ends[0], _FinishedError):
            raise RuntimeError(f"the vCPU thread of the benchmark ended with {ends}")
        self._sink.drain()
        first, second = self._marks.times
        return second - first


def _compare(
    kind: str,
    bare: _Bare,
    runner: _Runner,
    tables: dict[str, MmioFastpath | None],
    rounds: int,
) -> list[Figure]:
    """Run bursts in turns; return what an exit takes in C alone, and beyond that with *tables*."""
    laps: dict[str, list[tuple[float, float]]] = {name: [] for name in tables}
    for _ in range(rounds):
        for name, answers in tables.items():
            alone, whole = bare.lap(ring=name == DOORBELL), runner.lap(answers)
            laps[name].append((alone / BURST * 1e6, whole / BURST * 1e6))
    figures = []
    for name, pairs in laps.items():
        alone, whole = (undisturbed(column) for column in zip(*pairs, strict=True))
        low, _, high = quartiles([whole - alone for alone, whole in pairs])
        figures.append(
            Figure(
                group=GROUP,
                name=f"{kind}: {name}",
                value=whole - alone,
                low=low,
                high=high,
                samples=rounds,
                unit="us",
                at_most=PYTHON_TARGET if name.startswith("Python") else C_TARGET,
                note=f"beyond {alone:.1f} us",
            )
        )
    return figures


def _observed(runner: _Runner, answers: MmioFastpath | None, rounds: int) -> list[Figure]:
    """Run bursts as they are, counted, and beside a control socket, in turns.

    Return what an exit costs more with each. The socket has a client that asks for nothing.
    """
    observers = {COUNTED: ExitObserver(), BESIDE: None}
    laps: dict[str, list[float]] = {name: [] for name in ("not observed", *observers)}
    for _ in range(rounds):
        for name, column in laps.items():
            with _control() if name == BESIDE else nullcontext():
                column.append(runner.lap(answers, observers.get(name)) / BURST * 1e6)
    plain = laps.pop("not observed")
    figures = []
    for name, column in laps.items():
        low, _, high = quartiles([one - other for one, other in zip(column, plain, strict=True)])
        figures.append(
            Figure(
                group=GROUP,
                name=f"store: C, {name}",
                value=undisturbed(column) - undisturbed(plain),
                low=low,
                high=high,
                samples=rounds,
                unit="us",
                at_most=C_TARGET,
                note=f"beyond {undisturbed(plain):.1f} us",
            )
        )
    return figures


@contextmanager
def _control() -> Iterator[None]:
    """Serve a control socket with an idle client."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as owned:
        listening = owned.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listening.settimeout(0)
        listening.bind(f"{place}/socket")
        listening.listen()
        server = Server(listening, os.getuid(), [], lambda _call: None, Events())
        server.start()
        owned.callback(server.close)
        client = owned.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        client.connect(f"{place}/socket")
        time.sleep(0.005)  # until it is accepted
        yield


def _kicks(vcpu: Vcpu, count: int) -> list[Figure]:
    """Kick a guest that spins, at odd times; from the kick until its thread has the answer."""
    vcpu.set_answers(None)
    entered, left = Semaphore(0), Semaphore(0)
    returned: list[float] = []

    def run() -> None:
        for _ in range(count):
            entered.release()
            exit_ = vcpu.run()
            returned.append(time.perf_counter())
            if not isinstance(exit_, Interrupted):
                raise TypeError(f"a kick ended with {exit_}")
            vcpu.acknowledge_kick()
            left.release()

    thread = Thread(target=run)
    thread.start()
    latencies = []
    for turn in range(count):
        entered.acquire()
        time.sleep(0.0002 + 0.00005 * (turn % 13))
        began = time.perf_counter()
        vcpu.kick()
        left.acquire()
        latencies.append((returned[-1] - began) * 1e6)
    thread.join()
    return [
        Figure(group=GROUP, name=f"kick until the thread has it, p{percent}", unit="us",
               value=percentile(latencies, percent), samples=count)
        for percent in (50, 99)
    ]  # fmt: skip
