"""``pyvmm explain``: what an errno of a KVM, VFIO, iommufd, vhost or TAP ioctl may mean."""

from __future__ import annotations

import errno
import json
import os
from difflib import get_close_matches
from typing import TYPE_CHECKING

import click

from vmm.errors import UserError
from vmm.kvm.causes import CAUSES as KVM
from vmm.kvm.causes import GENERAL as KVM_GENERAL
from vmm.vfio.causes import CAUSES as VFIO
from vmm.vfio.causes import GENERAL as VFIO_GENERAL
from vmm.virtio.net.tap import TapQueue
from vmm.virtio.vhost.kernel import VhostFile

if TYPE_CHECKING:
    from vmm.cause import Cause, Table

TABLE: Table = {**KVM, **VFIO, **VhostFile.causes, **TapQueue.causes}


@click.command()
@click.argument("call", required=False)
@click.argument("number", metavar="[ERRNO]", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def explain(call: str | None, number: str | None, *, as_json: bool) -> None:
    """List what CALL may have failed from with ERRNO: causes, remedies, the kernel's function.

    CALL is an ioctl by the kernel's name, such as KVM_RUN, or mmap (of a VFIO region); ERRNO a name
    or a number. Without ERRNO: all of CALL's. Without both: the calls that are known.
    """
    if call is None:
        names = {
            name: sorted(number for each, number in TABLE if each == name) for name, _ in TABLE
        }
        if as_json:
            click.echo(json.dumps({name: list(map(_name, known)) for name, known in names.items()}))
        else:
            for name, known in names.items():
                click.echo(f"{name}: {', '.join(map(_name, known))}")
        return
    found = _find(call, None if number is None else _parse(number))
    if as_json:
        click.echo(json.dumps({_name(each): _as_json(causes) for each, causes in found.items()}))
        return
    for each, causes in found.items():
        click.echo(f"{call}: {_name(each)} ({os.strerror(each)})")
        for place, cause in enumerate(causes, 1):
            click.echo(f"  {place}. {cause.what}")
            if cause.remedy:
                click.echo(f"     do    {cause.remedy}")
            if cause.where:
                click.echo(f"     from  {cause.where}")


def _find(call: str, number: int | None) -> dict[int, tuple[Cause, ...]]:
    """Return the causes of *call* by errno, of all or of *number*. Raises `UserError`."""
    names = {name for name, _ in TABLE}
    if call not in names:
        near = get_close_matches(call.upper(), names, n=1)
        raise UserError(
            f"explain: nothing is known of {call}",
            f"did you mean {near[0]}?" if near else "`pyvmm explain` lists the calls",
        )
    if number is None:
        return {each: causes for (name, each), causes in TABLE.items() if name == call}
    general = KVM_GENERAL if call.startswith("KVM_") else VFIO_GENERAL
    causes = TABLE.get((call, number)) or general.get(number)
    if not causes:
        raise UserError(
            f"explain: no cause of {_name(number)} is known for {call}",
            f"`pyvmm explain {call}` lists those that are",
        )
    return {number: causes}


def _parse(text: str) -> int:
    """Return the errno of that name or number. Raises `UserError`."""
    numbers = {name: number for number, name in errno.errorcode.items()}
    if text.upper() in numbers:
        return numbers[text.upper()]
    if text.isdecimal() and int(text) in errno.errorcode:
        return int(text)
    raise UserError(f"explain: {text} is no errno", "give its name or number: EINVAL, or 22")


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number))


def _as_json(causes: tuple[Cause, ...]) -> list[dict[str, str]]:
    return [{"what": cause.what, "remedy": cause.remedy, "where": cause.where} for cause in causes]
