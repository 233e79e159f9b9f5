"""``pyvmm run``: its options, and where it runs; `request` reads them, `run_machine` does it."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmm.address_range import AddressRange
from vmm.arm64 import layout, payload
from vmm.cli.place import UAPI, host_option, is_native, profile_of, run_there
from vmm.cli.request import COMMAND, read
from vmm.cli.run_machine import run_machine
from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from vmm.config import MachineConfig

_PATH = click.Path(path_type=Path, readable=False)  # whoever opens the file reports the error


class Run(click.Command):
    """The command ``run``: the words after ``--`` are the guest's command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Set the words after ``--`` aside, and parse the rest."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[COMMAND] = tuple(args[at + 1 :])
            args = args[:at]
        image = self.make_parser(ctx).parse_args(list(args))[0].get("image")
        if isinstance(image, str) and image.endswith(".toml"):
            from vmm.cli import machine_file

            ctx.default_map = machine_file.defaults(Path(image), self)
            args = [word for word in args if word != image]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the parts of the usage line."""
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND...]"]


@click.command(cls=Run)
@click.argument("image", type=_PATH, required=False)
@click.option("--cpus", "-c", type=int, default=1, show_default=True, help="Number of vCPUs.")
@click.option(
    "--cpu-baseline",
    type=_PATH,
    metavar="FILE",
    help="Show the guest the CPU in FILE, of pyvmm compat baseline, instead of the host's.",
)
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
    type=UAPI,
    default="auto",
    show_default=True,
    help="Which interface the kernel has for cacheable PFNMAP; auto finds out.",
)
@click.option(
    "--uapi-profile",
    type=_PATH,
    metavar="FILE",
    help="Ask an out-of-tree kernel for the capabilities and memory-slot flags that FILE names.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Before the guest runs, prove which memory type stage 2 gives each --bar.",
)
@click.option(
    "--memory-dump",
    type=_PATH,
    metavar="FILE",
    help="Write the guest's RAM to FILE when the guest has ended.",
)
@click.option(
    "--snapshot",
    metavar="DIR[,then=go|end]",
    help="Write the machine into DIR at C-a w or SIGUSR2.",
)
@click.option(
    "--restore",
    type=_PATH,
    metavar="DIR",
    help="Go on from the snapshot in DIR, instead of booting IMAGE.",
)
@click.option(
    "--incoming",
    metavar="unix:PATH|tcp:HOST:PORT,tls=DIR|off",
    help="Wait for a guest that moves here (pyvmm migrate), instead of booting IMAGE.",
)
@click.option(
    "--coherency-sanitizer",
    is_flag=True,
    help="Make forgotten cache maintenance show: RAM that is owed any has two copies.",
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
@click.option(
    "--watchdog",
    metavar="SECONDS[,symbols=FILE]",
    help="Tell where a vCPU is that has run with interrupts off for SECONDS.",
)
@click.option(
    "--gdb",
    metavar="PORT|SOCKET[,wait]",
    help="Let a gdb connect to a port of 127.0.0.1 or a Unix socket.",
)
@click.option(
    "--name",
    metavar="NAME",
    help="Name the machine for pyvmm ps and others.  [default: vm-PID]",
)
@click.option(
    "--control",
    metavar="PATH|off",
    help="Listen for these commands on the Unix socket PATH, or nowhere.",
)
@click.option("--shell", is_flag=True, help="Allow pyvmm shell: Python in the machine's process.")
@click.option("--no-reboot", is_flag=True, help="Exit when the guest resets.")
@click.option(
    "--panic",
    type=click.Choice(["exit", "ignore"]),
    default="exit",
    show_default=True,
    help="When the guest's kernel panics: exit with status 4, or leave it to the guest.",
)
@click.option(
    "--sandbox",
    type=click.Choice(["on", "log", "off"]),
    default="on",
    show_default=True,
    help="Give up what the process does not need, before the guest runs.",
)
@click.option(
    "--cgroup",
    metavar="PARENT[,FILE=VALUE]...",
    help="Run the machine and its daemons in a cgroup of their own in PARENT, with limits.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End the run after SECONDS of the guest's time, with status 124.",
)
@click.option(
    "--trace", type=_PATH, metavar="FILE", help="Write a trace to FILE, for Perfetto to open."
)
@click.option(
    "--dump-dtb", type=_PATH, metavar="FILE", help="Write the guest's device tree to FILE."
)
@click.option(
    "--dry-run", is_flag=True, help="Build the machine, tell what it is, and run nothing."
)
@click.option(
    "--record-ioctls",
    type=_PATH,
    metavar="FILE",
    help="Write a C program to FILE that makes the run's KVM ioctls again.",
)
@click.option("--events", type=_PATH, help="Write what happens to FILE, as JSON lines.")
@click.option(
    "--escape",
    default="C-a",
    show_default=True,
    metavar="C-<key>|none",
    help="Prefix of pyvmm's own console keys; C-a h lists them.",
)
@click.option(
    "--console-filter",
    is_flag=True,
    help="Show the guest's control characters instead of sending them to the terminal.",
)
@click.option(
    "--print-python", is_flag=True, help="Print a program that runs the same machine, and end."
)
@click.option(
    "--print-config", is_flag=True, help="Print these options as a machine file, and end."
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
    if options["print_python"]:
        from vmm.cli.print_python import program

        click.echo(program(click.get_current_context()))
        return
    if options["print_config"]:
        from vmm.cli import machine_file

        click.echo(machine_file.config(click.get_current_context()), nl=False)
        return
    native = is_native(options["host"])
    request = read(options)
    with ExitStack() as owned:
        events = _open_events(request["events"], owned)
        trace = _open_output("--trace", request["trace"], owned)
        tree = _open_output("--dump-dtb", request["device_tree"], owned)
        if native:
            _record(request.pop("record_ioctls"), request["config"], owned)
            request |= {"events": events, "trace": trace, "device_tree": tree}
            if request.pop("dry"):
                from vmm.cli.dry_run import dry_run

                sys.exit(dry_run(**request))
            sys.exit(run_machine(**request))
    from vmm.config import codec

    config = request["config"]
    if config.disks:
        from vmm.virtio.block.image_format import with_formats

        config = with_formats(config)
    if not config.comes_along:
        _check_files(config)
    with ExitStack() as owned:
        from vmm.cli.ends import Ends, say, staying

        if line := staying(config, profile_of(options["host"])):
            say(line)
        ends = Ends(config, owned)
        words = ["run", "--request", codec.dumps({**request, "config": ends.config}, ends.visible)]
        packages = _packages(ends.config)
        sys.exit(run_there(options["host"], words, packages, ends.joints, writable=ends.named))


def _packages(config: MachineConfig) -> list[str]:
    """Return Debian's packages with the programs that the machine needs."""
    wanted = {
        "passt": any(net.kind.value == "user" and not net.relay for net in config.nets),
        "virtiofsd": bool(config.shares),
        "qemu-utils": any(disk.shares_memory for disk in config.disks),
    }
    return [name for name, needed in wanted.items() if needed]


def _check_files(config: MachineConfig) -> None:
    """Raise file errors now, before a lab host boots for a command that would fail in it."""
    payload.load(config).place(AddressRange(layout.RAM, config.memory))
    if config.firmware is not None or config.flash is not None:
        from vmm.machine.flash import check_files

        check_files(config)
    if config.cpu_baseline is not None:
        from vmm.state.baseline import Baseline

        Baseline.read(config.cpu_baseline)
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
    with _told("--events", path):
        return owned.enter_context(path.open("w", buffering=1))


def _open_output(option: str, path: Path | None, owned: ExitStack) -> int | None:
    """Return a descriptor of a new file at *path*. Raises `UserError`, naming *option*."""
    if path is None:
        return None
    with _told(option, path):
        return owned.enter_context(path.open("wb", buffering=0)).fileno()


def _record(path: Path | None, config: MachineConfig, owned: ExitStack) -> None:
    """Record KVM's ioctls until *owned* is closed. Raises `UserError`."""
    if path is None:
        return
    from vmm.uapi.c_program import recorded
    from vmm.uapi.profile import UapiProfile

    with _told("--record-ioctls", path):
        file = owned.enter_context(path.open("w"))
    structs = UapiProfile.load(config.uapi_profile).structs if config.uapi_profile else ""
    owned.enter_context(recorded(file, "pyvmm run", structs))


@contextmanager
def _told(option: str, path: Path) -> Iterator[None]:
    """Make of an OSError about *path* what the user needs to know."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{option} {path}: {error.strerror}", "name a file that can be written"
        ) from error
