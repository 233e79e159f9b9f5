"""The command line: options become a `MachineConfig`, errors become one line and an exit code.

A command's module is imported when the command is called: imports take 20 to 30 times as long in an
emulated host.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING

import click

from vmm.errors import EXHAUSTED, EXIT_SIGNAL_BASE, HostError, VmmError

if TYPE_CHECKING:
    from typing import NoReturn, TextIO

COMMANDS = {
    "run": "Run a guest: boot Linux from an image.",
    "ps": "List the machines that run.",
    "pause": "Hold a machine still.",
    "resume": "Let go of a machine that was paused.",
    "reset": "Reset a machine.",
    "stop": "End a machine.",
    "console": "Attach to a machine's console.",
    "top": "Show what a machine does, live.",
    "shell": "Open a Python prompt in a machine.",
    "events": "Print what happens to a machine.",
    "snapshot": "Write a snapshot of a machine.",
    "dump": "Write a machine's RAM to a file.",
    "migrate": "Move a running guest to another host.",
    "probe": "Tell what this host's KVM can do.",
    "map": "Tell what each range of a guest's memory is promised.",
    "verify": "Prove what stage 2 gives a region of a VFIO device.",
    "evidence": "Write what this host does with a region, to be posted.",
    "compat": "Compare hosts: where can a guest go on?",
    "report": "Make a page about a run from its trace.",
    "explain": "Tell what an errno of an ioctl may mean.",
    "vfio": "PCI devices for guests: list, bind, unbind.",
    "lab": "Emulated arm64 hosts with real KVM.",
    "help": "Show the page of a package or of an option.",
}
MODULES = dict.fromkeys(("pause", "resume", "reset", "stop", "snapshot", "dump"), "orders")
"""Commands that are in a module of another name."""
NAMES = {"help": "help_"}
"""Commands whose names are Python builtins, and their names in their modules."""

GC_THRESHOLD = 50_000
"""Objects allocated minus freed before a garbage collection of the youngest generation."""


class Commands(click.Group):
    """The subcommands, each in a module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands' names, in the order of the overview."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of command *name* and return the command; None if there is none."""
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(
            importlib.import_module(f"vmm.cli.{MODULES.get(name, name)}"), NAMES.get(name, name)
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the overview without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _tell_version(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:  # noqa: FBT001
    if asked:
        from importlib import metadata

        try:
            version = metadata.version("pyvmm-arm64")
        except metadata.PackageNotFoundError:  # as in a lab host, which gets the modules only
            version = "unknown: a tree of modules, not an installed package"
        click.echo(f"pyvmm, version {version}")
        ctx.exit()


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_tell_version,
    help="Show the version and exit.",
)
def pyvmm() -> None:
    """Run arm64 virtual machines on KVM, and see what KVM does.

    Exit status: 0 the guest powered off; 2 user error; 3 host error; 4 the guest panicked,
    crashed or reset in a loop; 130 quit from the console; 128+N ended by signal N; 1 a bug.
    """


def main() -> NoReturn:
    """Run pyvmm and exit with one of the statuses that vmm/cli/README.md documents."""
    sys.exit(_main())


def _main() -> int:
    # Imports allocate much and free little: with the default threshold a tenth of their time was
    # spent in the collector.
    gc.set_threshold(GC_THRESHOLD)
    stdout = sys.stdout
    try:
        return _invoke()
    except SystemExit:
        # `pyvmm probe | head`: click makes status 1 of EPIPE, and wraps stdout.
        if sys.stdout is not stdout:
            return EXIT_SIGNAL_BASE + signal.SIGPIPE
        raise
    except OSError as error:
        if not _is_of_output(error):
            if error.errno not in EXHAUSTED:
                raise
            _tell(
                HostError(
                    f"the host has run out of something: {error}", "free some, or raise its limit"
                )
            )
            return HostError.exit_code
        # `pyvmm probe >/dev/full`
        _tell(HostError(f"standard output: {error.strerror}", "free some, or write elsewhere"))
        _forget(sys.stdout)
        return HostError.exit_code


def _invoke() -> int:
    """Run the command; return its status. Errors of pyvmm's and of click's become one line."""
    try:
        status = pyvmm.main(prog_name="pyvmm", standalone_mode=False)
    except VmmError as error:
        _tell(error)
        return error.exit_code
    except click.ClickException as error:
        # Since click 8.2 the help for a call without arguments comes as an error.
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            error.show()
        else:
            _tell(_one_line(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_SIGNAL_BASE + signal.SIGINT
    return status if isinstance(status, int) else 0


def _tell(what: object) -> None:
    """Write a line for the user to stderr if that is possible: the status tells, too."""
    try:
        print(f"pyvmm: {what}", file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        _forget(sys.stderr)


def _is_of_output(error: OSError) -> bool:
    """Return whether *error* was raised by click: it writes all that commands say."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals["__name__"]).startswith("click.")


def _forget(stream: TextIO) -> None:
    """Point *stream* at /dev/null, where Python's own flush at exit succeeds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _one_line(error: click.ClickException) -> str:
    """Return click's error message in pyvmm's own form: what is wrong, then what to do."""
    text = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{text}; {context.command_path if context else 'pyvmm'} --help tells more"
