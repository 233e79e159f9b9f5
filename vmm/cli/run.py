"""``pyvmm run``: boot a guest, with this process's terminal as its console."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys
from contextlib import ExitStack, suppress
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from vmm.address_range import AddressRange
from vmm.arm64 import layout, payload
from vmm.cli.place import host_option, is_native, profile_of, run_there
from vmm.config import MachineConfig
from vmm.config.size import parse_size
from vmm.errors import (
    EXIT_GUEST,
    EXIT_POWERED_OFF,
    EXIT_SIGNAL_BASE,
    EXIT_TIMEOUT,
    UserError,
    VmmError,
)
from vmm.events import Events
from vmm.loop import Loop
from vmm.machine.machine import Ending, Machine
from vmm.terminal.console import StdioConsole, standard_input, standard_output, terminal_size
from vmm.terminal.escape import parse_prefix
from vmm.terminal.waiting import WaitingLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TextIO

    from vmm.config.command import CommandConfig
    from vmm.machine.guest_command import GuestCommand
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
    Ending.QUIT: EXIT_SIGNAL_BASE + signal.SIGINT,
}
"""Exit statuses of a guest's endings."""

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

COMMAND: Final = "vmm.cli.run.command"
"""Where the words after ``--`` are in click's context."""

_PATH = click.Path(path_type=Path, readable=False)  # whoever opens the file reports the error


class Run(click.Command):
    """The command ``run``: the words after ``--`` are the guest's command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Set the words after ``--`` aside, and parse the rest."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[COMMAND] = tuple(args[at + 1 :])
            args = args[:at]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the parts of the usage line."""
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND...]"]


@click.command(cls=Run)
@click.argument("image", type=_PATH, required=False)
@click.option("--cpus", "-c", type=int, default=1, show_default=True, help="Number of vCPUs.")
@click.option(
    "--memory", "-m", default="512M", show_default=True, help="Guest RAM: 512M, 2G; plain: MiB."
)
@click.option(
    "--kernel-tree",
    type=_PATH,
    metavar="DIR",
    help="Boot the kernel that was built in DIR, with the small guest around it.",
)
@click.option("--initrd", "-i", type=_PATH, help="Initial RAM disk; replaces the image's own.")
@click.option("--cmdline", "-a", help="Kernel command line; replaces the image's own.")
@click.option(
    "--firmware",
    type=_PATH,
    metavar="FILE",
    help="Boot firmware (UEFI, U-Boot) from flash instead of IMAGE.",
)
@click.option(
    "--flash",
    metavar="FILE[,ro]",
    help="Where firmware keeps its data, such as UEFI variables; made if it does not exist.",
)
@click.option(
    "--bar",
    "bars",
    multiple=True,
    metavar="BDF:REGION[@GPA][,cache=auto|require|forbid]",
    help="Map a region of a VFIO device into the guest's physical space.",
)
@click.option(
    "--memory-write-back",
    is_flag=True,
    help="Ask for Write-Back at stage 2 on RAM (the proposed memory-slot flag).",
)
@click.option(
    "--uapi",
    type=click.Choice(["auto", "mainline", "rfc"]),
    default="auto",
    show_default=True,
    help="Which interface the kernel has for cacheable PFNMAP; auto finds out.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Before the guest runs, prove which memory type stage 2 gives each --bar.",
)
@click.option(
    "--vfio",
    "vfio",
    multiple=True,
    metavar="BDF[,cache=auto|require|forbid][,rom=on|off|FILE][,bind][,backend=...]",
    help="Give the guest a PCI device of the host. A VFIO driver must have it, or say bind.",
)
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="PATH[,ro][,format=F][,cache=C][,serial=S][,queues=N]",
    help="Give the guest a disk: a raw or qcow2 image, or a block device, as virtio-blk.",
)
@click.option(
    "--console",
    "consoles",
    multiple=True,
    metavar="stdio|pty|file=PATH|unix=PATH[,name=NAME]",
    help="Give the guest a virtio console (hvc0), or with a name a port in /dev/virtio-ports.",
)
@click.option(
    "--transport",
    type=click.Choice(["mmio", "pci"]),
    default="mmio",
    show_default=True,
    help="How virtio devices are attached; pci has an interrupt for each queue.",
)
@click.option(
    "--net",
    "nets",
    multiple=True,
    metavar="tap[=NAME]|user|none[,OPTION]...",
    help="Give the guest a network interface: on a TAP of the host's, or through passt.",
)
@click.option(
    "--share",
    "shares",
    multiple=True,
    metavar="DIR[:TAG][,ro][,cache=auto|always|metadata|never]",
    help="Share a directory with the guest: mount -t virtiofs TAG /mnt.  [default tag: share]",
)
@click.option("--vsock", metavar="CID", help="Give the guest sockets to the host (AF_VSOCK).")
@click.option(
    "--pmem",
    "pmems",
    multiple=True,
    metavar="PATH[,ro][,size=SIZE]",
    help="Give the guest a file as persistent memory: a virtio-pmem device, /dev/pmem0.",
)
@click.option(
    "--balloon",
    is_flag=True,
    help="Return memory that the guest does not use to the host, by a virtio balloon.",
)
@click.option(
    "--balloon-size",
    metavar="SIZE",
    help="Inflate the balloon to SIZE; it deflates when the guest is out of memory.",
)
@click.option("--rng", is_flag=True, help="Give the guest random numbers: a virtio-rng device.")
@click.option("--no-reboot", is_flag=True, help="Exit when the guest resets.")
@click.option(
    "--panic",
    type=click.Choice(["exit", "ignore"]),
    default="exit",
    show_default=True,
    help="When the guest's kernel panics: exit with status 4, or leave it to the guest.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End the run after SECONDS of the guest's time, with status 124.",
)
@click.option("--events", type=_PATH, help="Write what happens to FILE, as JSON lines.")
@click.option(
    "--escape",
    default="C-a",
    show_default=True,
    metavar="C-<key>|none",
    help="Prefix of pyvmm's own console keys; C-a h lists them.",
)
@click.option("--request", hidden=True, help="All of the above, as vmm.config.codec writes it.")
@host_option
def run(**options: Any) -> None:
    """Run the guest in IMAGE, or what firmware finds on the guest's disks.

    IMAGE is a Linux kernel for arm64: an Image, a gzip, xz or zstd of one, an EFI zboot image, a
    unified kernel image with its own initrd and command line, or a flat binary.

    COMMAND runs in the small guest (scripts/quickstart makes its image), in the current directory,
    with the input, output and exit status of pyvmm run.
    """
    native = is_native(options["host"])
    request = _request(options)
    with ExitStack() as owned:
        events = _open_events(request["events"], owned)
        if native:
            sys.setswitchinterval(SWITCH_INTERVAL)
            _raise_descriptor_limit()
            sys.exit(run_machine(**{**request, "events": events}))
    from vmm.config import codec

    config = request["config"]
    if config.disks:
        from vmm.virtio.block.image_format import with_formats

        config = with_formats(config)
    _check_files(config)
    with ExitStack() as owned:
        from vmm.cli.ends import Ends, say, staying

        if line := staying(config, profile_of(options["host"])):
            say(line)
        ends = Ends(config, owned)
        words = ["run", "--request", codec.dumps({**request, "config": ends.config}, ends.visible)]
        sys.exit(run_there(options["host"], words, _packages(ends.config), ends.joints))


def _request(options: dict[str, Any]) -> dict[str, Any]:
    """Return what to run: the machine, where events go, the console's prefix. Raises `UserError`.

    Here they are options; in a lab host they are what `run` on the outside sent.
    """
    if options["request"] is not None:
        from vmm.config import codec

        return codec.loads(options["request"])
    config, escape = _configure(options)
    timeout = options["timeout"]
    # The codec has no fractions.
    milliseconds = None if timeout is None else max(1, round(timeout * 1000))
    return {
        "config": config,
        "events": options["events"],
        "escape": escape,
        "milliseconds": milliseconds,
    }


def _configure(options: dict[str, Any]) -> tuple[MachineConfig, int | None]:
    """Return the machine and the console's escape prefix. Raises `UserError`."""
    image, initrd, tree = options["image"], options["initrd"], options["kernel_tree"]
    if tree is not None:
        if image is not None or options["firmware"] is not None:
            raise UserError("--kernel-tree: DIR has the kernel already", "leave IMAGE out")
        from vmm.cli import kernel_tree

        image = kernel_tree.image(tree)
        initrd = initrd or kernel_tree.initrd()
    consoles = _each(options["consoles"], "console")
    shares = _parse("shares", "share")(options["shares"]) if options["shares"] else ()
    command = _command()
    if command is not None:
        from vmm.config import command as parts

        consoles = (*parts.consoles(command), *consoles)
        shares = (*parts.shares(command), *shares)
    config = MachineConfig(
        image=image,
        firmware=options["firmware"],
        flash=None if options["flash"] is None else _parse("flash", "firmware")(options["flash"]),
        initrd=initrd,
        cmdline=options["cmdline"],
        cpus=options["cpus"],
        memory=parse_size(options["memory"], "--memory"),
        reboot=not options["no_reboot"] and command is None,
        panic=options["panic"],
        bars=_each(options["bars"], "bar"),
        write_back=options["memory_write_back"],
        uapi=options["uapi"],
        verify=options["verify"],
        rng=options["rng"],
        disks=_each(options["disks"], "disk"),
        consoles=consoles,
        pmems=_each(options["pmems"], "pmem"),
        balloon=_balloon(options["balloon"], options["balloon_size"]),
        transport=options["transport"],
        nets=_parse("nets", "net")(options["nets"]) if options["nets"] else (),
        shares=shares,
        vsock=None if options["vsock"] is None else _parse("vsock")(options["vsock"]),
        vfio=_each(options["vfio"], "vfio"),
        command=command,
    )
    if tree is not None:
        kernel_tree.check(tree, config)
    return config, parse_prefix(options["escape"])


def _command() -> CommandConfig | None:
    """Return the command after ``--``. Raises `UserError`."""
    words = click.get_current_context().meta.get(COMMAND)
    if words is None:
        return None
    if not words:
        raise UserError("--: no COMMAND follows", "write pyvmm run IMAGE -- COMMAND")
    from vmm.config.command import CommandConfig

    try:
        directory = os.getcwd()  # noqa: PTH109  (text)
    except OSError as error:
        raise UserError(f"the current directory: {error.strerror}", "cd into another") from error
    terminal = os.isatty(0) and os.isatty(1)
    return CommandConfig(words, directory, (os.environ.get("TERM") or "dumb") if terminal else "")


def _parse(name: str, module: str = "") -> Callable[[Any], Any]:
    """Return ``parse_NAME``, for an option that is given: emulated, a module costs 10 ms."""
    found: Callable[[Any], Any] = getattr(
        importlib.import_module(f"vmm.config.{module or name}"), f"parse_{name}"
    )
    return found


def _each(texts: Sequence[str], name: str) -> tuple[Any, ...]:
    return tuple(_parse(name)(text) for text in texts)


def _balloon(wanted: bool, size: str | None) -> int | None:  # noqa: FBT001  (a flag)
    if not wanted and size is None:
        return None
    from vmm.config.balloon import parse_balloon

    return parse_balloon(wanted, size)


def _packages(config: MachineConfig) -> list[str]:
    """Return Debian's packages with the programs that the machine needs."""
    wanted = {
        "passt": any(net.kind.value == "user" and not net.relay for net in config.nets),
        "virtiofsd": bool(config.shares),
        "qemu-utils": any(disk.shares_memory for disk in config.disks),
    }
    return [name for name, needed in wanted.items() if needed]


def _raise_descriptor_limit() -> None:
    """Raise the soft limit on descriptors: its usual value, 1024, is for users of select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # above the kernel's own limit: keep the old one
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _check_files(config: MachineConfig) -> None:
    """Raise file errors now, before a lab host boots for a command that would fail in it."""
    payload.load(config).place(AddressRange(layout.RAM, config.memory))
    if config.firmware is not None or config.flash is not None:
        from vmm.machine.flash import check_files

        check_files(config)
    if config.shares:
        from vmm.virtio.fs.virtiofsd import check_directory

        for share in config.shares:
            check_directory(share)


def _open_events(path: Path | None, owned: ExitStack) -> TextIO | None:
    if path is None:
        return None
    if str(path) == "-":
        raise UserError(
            "--events -: standard output is the guest's console", "name a file, or /dev/stderr"
        )
    try:
        return owned.enter_context(path.open("w", buffering=1))
    except OSError as error:
        raise UserError(
            f"--events {path}: {error.strerror}", "name a file that can be written"
        ) from error


def _join_consoles(
    loop: Loop, machine: Machine, escape: int | None, owned: ExitStack
) -> list[StdioConsole]:
    """Join the guest's consoles to this process's stdin and stdout; return the user's own first.

    That is the serial port, or, with ``--console stdio``, the virtio console; then the serial
    port's output is shown, too, for what comes before the guest has a driver.
    """
    stdin, stdout = standard_input(), standard_output()
    terminal, uart = machine.terminal, machine.uart
    if terminal is None:
        console = StdioConsole(
            loop, machine.output, uart, stdin=stdin, stdout=stdout, escape=escape
        )
        uart.on_space = console.input_ready
        console.on_switch = lambda: console.say("there is one console: that takes --console stdio")
        return [owned.enter_context(console)]

    def resized() -> None:
        if size := terminal_size():
            terminal.resize(*size)

    serial = StdioConsole(loop, machine.output, uart, stdin=None, stdout=stdout)
    console = StdioConsole(loop, terminal, terminal, stdin=stdin, stdout=stdout, escape=escape)
    terminal.on_space = uart.on_space = console.input_ready
    ends: Iterator[tuple[str, InputSink]] = cycle([("the serial port", uart), ("hvc0", terminal)])

    def switch() -> None:
        name, sink = next(ends)
        console.type_into(sink)
        console.say(f"what you type goes to {name}")

    console.on_switch = switch
    owned.enter_context(serial)
    owned.enter_context(console)
    loop.add_signal(signal.SIGWINCH, resized)
    return [console, serial]


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


def _join_command(
    loop: Loop,
    machine: Machine,
    config: CommandConfig | None,
    escape: int | None,
    owned: ExitStack,
) -> GuestCommand | None:
    """Join the guest's command, if any, to this process's stdin, stdout and stderr."""
    if config is None:
        return None
    from vmm.machine.guest_command import GuestCommand

    return owned.enter_context(GuestCommand(loop, machine, escape, terminal=bool(config.terminal)))


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


def run_machine(
    config: MachineConfig,
    escape: int | None,
    events: TextIO | None,
    milliseconds: int | None = None,
) -> int:
    """Run a machine with this process's stdin and stdout as its console; return the status.

    escape        prefix of pyvmm's own keys on a terminal; None: there are no such keys
    events        where to write events; None: nowhere
    milliseconds  end the run after so long; None: never
    """
    received: list[int] = []
    with (
        Loop() as loop,
        Machine(config, loop, Events(events)) as machine,
        ExitStack() as owned,
    ):
        command = _join_command(loop, machine, config.command, escape, owned)
        if command is None:
            console, *others = _join_consoles(loop, machine, escape, owned)
        else:
            console, *others = command.consoles
        _tell_silence(machine, [console, *others], owned)

        def quit_for(number: int) -> None:
            received.append(number)
            machine.end(Ending.QUIT)
            loop.stop()

        machine.say = console.say
        console.on_quit = lambda: quit_for(signal.SIGINT)
        console.on_reset = lambda: machine.end(Ending.RESET)
        console.on_balloon = lambda direction: console.say(_squeeze(machine, config, direction))
        console.on_map = lambda: console.say(*_map(machine))
        for number in SIGNALS:
            loop.add_signal(number, lambda number=number: quit_for(number))  # type: ignore[misc]
        if milliseconds is not None:
            loop.call_later(milliseconds / 1000, lambda: machine.end(Ending.TIMED_OUT))
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


def _tell_ending(
    machine: Machine, ending: Ending, console: StdioConsole, milliseconds: int | None
) -> None:
    """Tell the user why the run is over, if the guest has not ended it itself."""
    if ending in (Ending.CRASHED, Ending.PANICKED):
        reason = f": {machine.panic_reason}" if machine.panic_reason else ""
        console.say(f"the guest has {ending.value}{reason}")
    elif ending is Ending.TIMED_OUT and milliseconds is not None:
        console.say(f"--timeout: the guest has run for {milliseconds / 1000:g} s")
