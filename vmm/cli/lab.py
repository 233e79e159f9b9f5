"""``pyvmm lab``: emulated arm64 hosts with real KVM, on machines that have none."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from vmm.cli import output
from vmm.errors import UserError
from vmm.lab.debian import apt, rootfs
from vmm.lab.host import cleaning, packages, qemu, state, tree
from vmm.lab.host import matrix as table
from vmm.lab.host.client import run_in_lab
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.ktap import ktap
from vmm.lab.host.profiles import DEFAULT, PROFILES
from vmm.lab.host.profiles import profile as known

_PROFILE = click.argument("profile", default=DEFAULT)
_FILE = click.Path(path_type=Path)


@click.group()
def lab() -> None:
    """Emulated arm64 hosts with real KVM.

    A host is QEMU's emulation of an arm64 machine with EL2, running Debian's arm64 kernel.
    The first use downloads some 200 MB of Debian packages; `pyvmm lab build` does just that.
    """


@lab.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array, for programs.")
def profiles(*, as_json: bool) -> None:
    """List the kinds of hosts."""
    if as_json:
        found = [
            {
                "profile": name,
                "description": profile.description,
                "default": name == DEFAULT,
                "cpu": profile.cpu,
                "cpus": profile.cpus,
                "gic": profile.gic,
                "memory": profile.memory,
            }
            for name, profile in PROFILES.items()
        ]
        click.echo(json.dumps(found, indent=1))
        return
    width = max(map(len, PROFILES))
    for name, profile in PROFILES.items():
        note = " (default)" if name == DEFAULT else ""
        click.echo(f"{name:{width}}  {profile.description}{note}")


@lab.command()
@click.argument("names", metavar="[PROFILE]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Build what all profiles need.")
@click.option("--refresh", is_flag=True, help="Take what the mirror offers today.")
def build(names: tuple[str, ...], *, everything: bool, refresh: bool) -> None:
    """Download and build what hosts of PROFILE need (default: fwb); start none."""
    chosen = [known(name) for name in names or [DEFAULT]]
    if everything:
        chosen = list(PROFILES.values())
    if refresh:
        apt.forget()
    qemu.emulator()
    for profile in chosen:
        profile.kernel.image()
        rootfs.initrd(profile.kernel.modules())
    tree.archive()
    cleaning.keep_bound()


@lab.command()
@_PROFILE
@click.option(
    "--writable",
    type=_FILE,
    multiple=True,
    help="A file or directory of this machine that it can write while it is up.",
)
def up(profile: str, writable: tuple[Path, ...]) -> None:
    """Start a host of PROFILE (default: fwb) and keep it up for further commands.

    Of this machine it can write the directories that commands are started in, and files that they
    name, from then on.
    """
    found = Host.find(known(profile).name)
    host = found or Host.start(profile, keep=True)
    host.agent.allow(writable)
    host.agent.install_tree()
    how = "already" if found else f"(it took {host.record.boot_seconds:.1f} s)"
    click.echo(f"{profile} is up {how}")


@lab.command()
@click.argument("names", metavar="[PROFILE] PACKAGE...", nargs=-1, required=True)
def install(names: tuple[str, ...]) -> None:
    """Install Debian packages, and all they depend on, in the host of PROFILE that is kept up.

    The first word is PROFILE if it is the name of one; by default it is fwb.
    `pyvmm run --host lab` does that by itself for what its options need.
    """
    profile, wanted = (names[0], names[1:]) if names[0] in PROFILES else (DEFAULT, names)
    if not wanted:
        raise UserError(f"pyvmm lab install {profile}: which packages?", "name Debian's")
    host = Host.find(profile)
    if host is None:
        raise UserError(f"no lab host {profile} is up", f"start it: pyvmm lab up {profile}")
    packages.install(host, wanted)


@lab.command()
@click.argument("names", metavar="[PROFILE]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="End all hosts of yours, kept up or not.")
def down(names: tuple[str, ...], *, everything: bool) -> None:
    """End hosts that are kept up (default: fwb). Hosts of other users stay."""
    wanted = {known(name).name for name in names or (() if everything else [DEFAULT])}
    ended = set()
    for directory, record in state.hosts():
        if everything or directory.name in wanted:
            state.discard(directory, record)
            ended.add(directory.name)
            whose = "" if record.keep else f"; it was for one command, process {record.owner.pid}"
            click.echo(f"{directory.name} is down{whose}")
    for name in sorted(wanted - ended):
        click.echo(f"{name} was not up")
    if not wanted and not ended:
        click.echo("no lab host runs")


@lab.command()
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=cleaning.OLD,
    show_default=True,
    metavar="DAYS",
    help="Remove what was not used for so long; 0: all that is not in use.",
)
def clean(*, older_than: float) -> None:
    """Remove what the cache has and nobody has used for DAYS.

    What hosts and other programs of this user use stays. What is needed again is downloaded or
    built again.
    """
    removed, stay = cleaning.clean(older_than * cleaning.DAY)
    for line in cleaning.summary(removed):
        click.echo(line)
    click.echo(f"removed {cleaning.counted(removed)}; {cleaning.counted(stay)} stay")


@lab.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array, for programs.")
def status(*, as_json: bool) -> None:
    """List the hosts that run."""
    found = [
        {
            "id": directory.name,
            "profile": record.profile,
            "kept": record.keep,
            "up": record.up,
            "pid": record.qemu.pid if record.qemu else None,
            "since": record.started,
            "boot_seconds": round(record.boot_seconds, 1),
            "console": str(directory / "console.log"),
        }
        for directory, record in state.hosts()
    ]
    if as_json:
        click.echo(json.dumps(found, indent=1))
    for host in found if not as_json else ():
        kind = "kept up" if host["kept"] else "for one command"
        what = "up" if host["up"] else "starting"
        minutes = (time.time() - float(str(host["since"]))) / 60
        click.echo(f"{host['id']:24} {what}, {kind}, pid {host['pid']}, for {minutes:.0f} min")
    if not found and not as_json:
        click.echo("no lab host runs")


class _Exec(click.Command):
    """A command whose first argument, PROFILE, may be left out before ``--``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default PROFILE before a leading ``--``, which click would drop."""
        return super().parse_args(ctx, [DEFAULT, *args] if args[:1] == ["--"] else args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the synopsis."""
        return ["[PROFILE]", "--", "COMMAND..."]


@lab.command("exec", cls=_Exec, context_settings={"ignore_unknown_options": True})
@click.argument("profile")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(profile: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in a host of PROFILE (default: fwb), here; exit with its status.

    Use the host that `up` keeps, or else one for this command only. The host gets the vmm of this
    pyvmm. Files of this machine are at their own places unless the host has its own (/usr, /etc,
    /var, ...); all of them are below /host. A command that is not there is status 127.
    """
    sys.exit(run_in_lab(known(profile).name, command))


@lab.command()
@_PROFILE
def shell(profile: str) -> None:
    """Run an interactive shell in a host of PROFILE (default: fwb)."""
    name = known(profile).name
    sys.exit(run_in_lab(name, ["sh"], {"PS1": f"{name}:\\w# "}))


@lab.command()
@click.argument("names", metavar="[PROFILE]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Legacy kernels as well (built first).")
@click.option("--markdown", type=_FILE, help="Write the table into this file.")
@click.option("--json", "as_json", type=_FILE, help="Write all that was seen into this file.")
@click.option("--html", type=_FILE, help="Write a page into this file.")
@click.option("--tap", is_flag=True, help="Print KTAP, as the kernel's own tests do.")
@click.option("--expect", type=_FILE, help="Compare with this file, not with pyvmm's expectation.")
def matrix(  # noqa: PLR0913  (one argument per option)
    names: tuple[str, ...],
    *,
    everything: bool,
    markdown: Path | None,
    as_json: Path | None,
    html: Path | None,
    tap: bool,
    expect: Path | None,
) -> None:
    """Measure the truth table of cacheable PFNMAP in hosts of PROFILE, or of all but legacy ones.

    Each kind of memory is registered with the Write-Back flag and without, and a guest proves
    what stage 2 gives it. Each cell that is not as expected is named, and then the exit status
    is 1.
    """
    expected = table.load_expected(expect or table.EXPECTATION)
    chosen = names or [
        name for name, (kernel, _) in table.PROFILES.items() if everything or kernel != "legacy"
    ]
    found = {name: table.measure(name) for name in chosen}
    output.write(
        [
            (markdown, table.markdown(found)),
            (as_json, json.dumps(found, indent=1) + "\n"),
            (html, table.html(found)),
        ]
    )
    click.echo("\n".join(ktap(found, expected)) + "\n" if tap else table.markdown(found), nl=False)
    differences = table.compare(found, expected)
    for difference in differences:
        click.echo(str(difference), err=True)
    sys.exit(1 if differences else 0)
