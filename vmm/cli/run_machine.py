"""Run a machine with this process's terminal, or its pipes, as the guest's console."""

from __future__ import annotations

import os
import resource
import signal
import sys
from contextlib import ExitStack, suppress
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmm.arm64 import layout
from vmm.cli import reach
from vmm.debug.watch import watch
from vmm.errors import (
    EXIT_GUEST,
    EXIT_POWERED_OFF,
    EXIT_SIGNAL_BASE,
    EXIT_TIMEOUT,
    HostError,
    VmmError,
)
from vmm.loop import Loop
from vmm.machine.machine import Ending, Machine
from vmm.machine.seal import seal
from vmm.observe.trace import Tracing
from vmm.terminal.console import StdioConsole, standard_input, standard_output, terminal_size
from vmm.terminal.waiting import WaitingLine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO

    from vmm.broker import Broker
    from vmm.broker.server import Debt
    from vmm.cli.reach import Shown
    from vmm.config import MachineConfig
    from vmm.config.command import CommandConfig
    from vmm.machine.guest_command import GuestCommand
    from vmm.machine.incoming import Incoming
    from vmm.terminal.console import InputSink

SWITCH_INTERVAL: Final = 1e-4
"""Seconds for which a Python thread may hold the GIL while others, such as a vCPU's, wait."""

DESCRIPTORS: Final = 1 << 16
"""File descriptors that a large machine opens: an eventfd for each queue and interrupt."""

BALLOON_STEP: Final = 64 << 20
"""Bytes by which C-a - and C-a + change the balloon; also what the guest always keeps."""

STATUS: Final = {
    Ending.POWERED_OFF: EXIT_POWERED_OFF,
    Ending.RESET: EXIT_POWERED_OFF,
    Ending.CRASHED: EXIT_GUEST,
    Ending.PANICKED: EXIT_GUEST,
    Ending.TIMED_OUT: EXIT_TIMEOUT,
    Ending.SAVED: EXIT_POWERED_OFF,
    Ending.MOVED: EXIT_POWERED_OFF,
    Ending.QUIT: EXIT_SIGNAL_BASE + signal.SIGINT,
}
"""Exit statuses of a guest's endings."""

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_machine(  # noqa: PLR0913  (what a run needs besides the machine)
    config: MachineConfig,
    escape: int | None,
    events: TextIO | None,
    milliseconds: int | None = None,
    *,
    filtered: bool = False,
    trace: int | None = None,
    device_tree: int | None = None,
) -> int:
    """Run a machine with this process's stdin and stdout as its console; return the status.

    escape        prefix of pyvmm's own keys on a terminal; None: there are no such keys
    events        where to write events; None: nowhere
    milliseconds  end the run after so long; None: never
    filtered      show the guest's control characters instead of sending them to the terminal
    trace         descriptor to write a trace to; None: there is none
    device_tree   descriptor to write the device tree to; None: nowhere
    """
    incoming = _wait_for(config)
    config, lender = prepare(config if incoming is None else incoming.config(config))
    received: list[int] = []
    emitter = reach.events(config, events)
    with (
        Loop() as loop,
        Tracing(loop, trace) as tracing,
        Machine(config, loop, emitter, trace=tracing.trace, incoming=incoming) as machine,
        ExitStack() as owned,
    ):
        watch(config, machine, loop, emitter, owned)
        machine.watchers += [] if device_tree is None else [reach.KeepDeviceTree(device_tree)]
        control = reach.listen(config, machine, loop, emitter, owned)
        command = _join_command(loop, machine, config.command, escape, owned, filtered=filtered)
        if command is None:
            shown = reach.shown(control, filtered=filtered)
            console, *others = _join_consoles(loop, machine, escape, owned, shown)
        else:
            console, *others = command.consoles
        _tell_silence(machine, [console, *others], owned)

        def quit_for(number: int) -> None:
            received.append(number)
            machine.end(Ending.QUIT)
            loop.stop()

        machine.say = tracing.say = console.say
        owned.callback(setattr, tracing, "say", _say_last)  # the trace ends after the console
        console.on_quit = lambda: quit_for(signal.SIGINT)
        _bind_keys(loop, machine, config, console)
        for number in SIGNALS:
            loop.add_signal(number, lambda number=number: quit_for(number))  # type: ignore[misc]
        if milliseconds is not None:
            loop.call_later(milliseconds / 1000, lambda: machine.end(Ending.TIMED_OUT))
        machine.confine(shows_ledger=console.on_terminal or config.control is not None)
        _freeze(lender, loop, machine)
        control.start()
        ending = machine.run()
        for each in (console, *others):
            if not received:
                each.flush()
        if received:
            return EXIT_SIGNAL_BASE + received[0]
        if command is not None and ending is not Ending.TIMED_OUT:
            return command.result(ending)
        _tell_ending(machine, ending, console, milliseconds)
        return STATUS[ending]


def prepare(config: MachineConfig) -> tuple[MachineConfig, Broker | None]:
    """Make this process one for a machine: sealed, with a broker; return what it is to run."""
    config = _saved(config)
    if config.sandbox != "off":
        seal()
    lender = _start_broker(config)
    sys.setswitchinterval(SWITCH_INTERVAL)
    _raise_descriptor_limit()
    return config, lender


def _wait_for(config: MachineConfig) -> Incoming | None:
    """Wait for the guest of ``--incoming``, and take its source's offer; None: there is none."""
    if config.incoming is None:
        return None
    from vmm.machine.incoming import Incoming, listen

    secure = None
    if config.incoming.tls is not None:
        from vmm.state import tls

        secure = tls.context(f"--incoming {config.incoming}", config.incoming.tls, server=True)
    listener = listen(config.incoming)
    print(f"pyvmm: waiting for a guest at {config.incoming}", file=sys.stderr, flush=True)  # noqa: T201
    try:
        return Incoming(listener, secure, _say_last)
    finally:
        if config.incoming.path:
            Path(config.incoming.path).unlink(missing_ok=True)


def _saved(config: MachineConfig) -> MachineConfig:
    """Return the configuration in the snapshot of ``--restore``, or *config* without that."""
    if config.restore is None:
        return config
    from vmm.machine.restore import Restore

    with Restore(config.restore) as restore:
        return restore.config(config)


def _start_broker(config: MachineConfig) -> Broker | None:
    """Start the broker of a machine that needs one, before there is any thread.

    It keeps the threads of daemons from starting until it is frozen.
    """
    sockets = config.gdb is not None and config.gdb.path is not None
    sockets |= config.control is not None
    sockets |= any(console.kind == "unix" for console in config.consoles)
    bound = any(device.bind for device in config.vfio)
    served = config.disks or config.nets or config.shares or config.vfio
    files = config.memory_dump or config.snapshot
    if not (served or files or sockets or config.cgroup):
        return None
    from vmm import broker

    debts: dict[str, Debt] = {}
    if bound:
        from vmm.vfio.binding import DEBTS

        debts.update(DEBTS)
    if config.cgroup is not None:
        from vmm.broker import cgroup

        debts.update(cgroup.DEBTS)
    lender = broker.current(debts)
    if config.cgroup is not None:
        limits = [word for limit in config.cgroup.limits for word in limit]
        lender.borrow("cgroup", config.cgroup.parent, os.getpid(), *limits)
    lender.walls = config.sandbox != "off"
    lender.hold()
    return lender


def _freeze(lender: Broker | None, loop: Loop, machine: Machine) -> None:
    """Let the broker take nothing new, start its daemons' threads, and end the machine with it."""
    if lender is not None:
        lender.freeze()
        gone = HostError("the broker, which has the machine's daemons, has ended", "was it killed?")
        loop.add_reader(lender.fileno(), lambda: machine.end(gone))
        lender.release()


def _say_last(line: str) -> None:
    """Tell the user *line* after the consoles are closed."""
    print(f"pyvmm: {line}", file=sys.stderr, flush=True)  # noqa: T201


def _bind_keys(loop: Loop, machine: Machine, config: MachineConfig, console: StdioConsole) -> None:
    """Let the console's keys act on the machine, and SIGUSR2 where there may be snapshots."""
    console.on_reset = lambda: machine.end(Ending.RESET)
    console.on_balloon = lambda direction: console.say(_squeeze(machine, config, direction))
    console.on_map = lambda: console.say(*_map(machine))
    console.on_counters = lambda: console.say(*machine.counters().lines())
    console.on_snapshot = lambda: machine.save(console.say)
    if config.snapshot is not None:
        loop.add_signal(signal.SIGUSR2, console.on_snapshot)


def _tell_ending(
    machine: Machine, ending: Ending, console: StdioConsole, milliseconds: int | None
) -> None:
    """Tell the user why the run is over, if the guest has not ended it itself."""
    if ending in (Ending.CRASHED, Ending.PANICKED):
        console.say(machine.told(ending))
    elif ending is Ending.TIMED_OUT and milliseconds is not None:
        console.say(f"--timeout: the guest has run for {milliseconds / 1000:g} s")


def _raise_descriptor_limit() -> None:
    """Raise the soft limit on descriptors: its usual value, 1024, is for users of select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # above the kernel's own limit: keep the old one
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _join_consoles(
    loop: Loop, machine: Machine, escape: int | None, owned: ExitStack, shown: Shown
) -> list[StdioConsole]:
    """Join the guest's consoles to this process's stdin and stdout; return the user's own first.

    That is the serial port, or, with ``--console stdio``, the virtio console; then the serial
    port's output is shown, too, for what comes before the guest has a driver. *shown* returns what
    is shown of a console, by its name, what the guest sends, and what it reads.
    """
    stdin, stdout = standard_input(), standard_output()
    terminal, uart = machine.terminal, machine.uart
    printed = shown("serial", machine.output, uart)
    if terminal is None:
        console = StdioConsole(loop, printed, uart, stdin=stdin, stdout=stdout, escape=escape)
        uart.on_space = console.input_ready
        console.on_switch = lambda: console.say("there is one console: that takes --console stdio")
        return [owned.enter_context(console)]
    serial = StdioConsole(loop, printed, uart, stdin=None, stdout=stdout)
    console = StdioConsole(
        loop,
        shown("virtio", terminal, terminal),
        terminal,
        stdin=stdin,
        stdout=stdout,
        escape=escape,
    )
    terminal.on_space = uart.on_space = console.input_ready
    ends: Iterator[tuple[str, InputSink]] = cycle([("the serial port", uart), ("hvc0", terminal)])

    def switch() -> None:
        name, sink = next(ends)
        console.type_into(sink)
        console.say(f"what you type goes to {name}")

    console.on_switch = switch
    console.on_resize = terminal.resize
    owned.enter_context(serial)
    owned.enter_context(console)
    return [console, serial]


def _join_command(  # noqa: PLR0913  (all independent)
    loop: Loop,
    machine: Machine,
    config: CommandConfig | None,
    escape: int | None,
    owned: ExitStack,
    *,
    filtered: bool,
) -> GuestCommand | None:
    """Join the guest's command, if any, to this process's stdin, stdout and stderr."""
    if config is None:
        return None
    from vmm.machine.guest_command import GuestCommand

    terminal = bool(config.terminal)
    return owned.enter_context(
        GuestCommand(loop, machine, escape, terminal=terminal, filtered=filtered)
    )


def _tell_silence(machine: Machine, consoles: Sequence[StdioConsole], owned: ExitStack) -> None:
    """On a terminal, say so while the guest says nothing after power-on, and end its last line."""
    owned.callback(consoles[0].end_line)  # the shell's prompt is not to follow the guest's
    waiting = owned.enter_context(WaitingLine())
    for each in consoles:
        each.on_output = waiting.end

    def power_on() -> None:
        consoles[0].end_line()
        waiting.begin("waiting for the guest to speak")

    machine.on_power_on = power_on


def _squeeze(machine: Machine, config: MachineConfig, direction: int) -> str:
    """Change the balloon's size by one step up (1) or down (-1); return a line for the user."""
    if machine.balloon is None:
        return "there is no balloon: that takes --balloon"
    size = machine.balloon.target + direction * BALLOON_STEP
    size = max(0, min(size, config.memory - BALLOON_STEP))
    machine.balloon.resize(size)
    return f"the balloon shall have {size >> 20} MiB; it has {machine.balloon.actual >> 20} MiB"


def _map(machine: Machine) -> list[str]:
    """Return the ledger of the running machine as lines for the user, or the error."""
    from vmm.coherence import chart

    try:
        size = terminal_size()
        room = size[0] - len("pyvmm: ") if size else chart.WIDE
        return chart.table(machine.ledger(), layout.REGISTERS, room)
    except VmmError as error:
        return [str(error)]
