"""Option values: commas in names, keys given twice, keys that are nearly right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.config.bar import parse_bar
from vmm.config.console import parse_console
from vmm.config.disk import parse_disk
from vmm.config.firmware import parse_flash
from vmm.config.net import parse_net
from vmm.config.option import split
from vmm.config.pmem import parse_pmem
from vmm.config.share import parse_share
from vmm.config.vfio import parse_vfio
from vmm.errors import UserError

BDF = "0000:01:00.0"


@given(st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1), min_size=1))
def test_a_double_comma_is_a_comma_in_a_name(parts: list[str]) -> None:
    # A part that begins or ends with a comma runs into the comma between parts: as in QEMU.
    parts = [part.strip(",") or "x" for part in parts]
    assert split(",".join(part.replace(",", ",,") for part in parts)) == parts


@pytest.mark.parametrize(
    ("parse", "text", "path"),
    [
        (parse_disk, "a,,b.img,ro", "a,b.img"),
        (parse_flash, "a,,b,ro", "a,b"),
        (parse_pmem, "a,,b,ro", "a,b"),
        (parse_share, "a,,b:tag,ro", "a,b"),
        (parse_share, "a:b:tag", "a:b"),
        (parse_console, "unix=a,,b,name=n", "a,b"),
    ],
)
def test_a_path_may_have_commas_and_colons(
    parse: Callable[[str], Any], text: str, path: str
) -> None:
    assert parse(text).path == Path(path)
    assert parse_vfio(f"{BDF},rom=a,,b").rom == Path("a,b")


@pytest.mark.parametrize(
    ("parse", "text", "key"),
    [
        (parse_disk, "d,ro,ro", "ro"),
        (parse_disk, "d,queues=1,queues=2", "queues"),
        (parse_disk, "d,cache=none,ro,cache=none", "cache"),
        (parse_net, "tap,mtu=1500,mtu=1500", "mtu"),
        (parse_share, "d,ro,ro", "ro"),
        (parse_pmem, "d,size=2M,size=4M", "size"),
        (parse_flash, "f,ro,ro", "ro"),
        (parse_console, "pty,name=a,name=b", "name"),
        (parse_vfio, f"{BDF},bind,bind", "bind"),
        (parse_bar, f"{BDF}:4,cache=auto,cache=require", "cache"),
    ],
)
def test_a_key_that_is_given_twice_is_an_error(
    parse: Callable[[str], Any], text: str, key: str
) -> None:
    with pytest.raises(UserError, match=rf": {key} is given twice; leave one") as caught:
        parse(text)
    assert text in str(caught.value)


def test_forwards_may_be_given_several_times() -> None:
    assert len(parse_net("user,forward=tcp:1:2,forward=udp:1:2").forwards) == 2


@pytest.mark.parametrize(
    ("parse", "text", "meant"),
    [
        (parse_disk, "d,qeues=2", "queues"),
        (parse_disk, "d,serail=x", "serial"),
        (parse_net, "user,foward=tcp:1:2", "forward"),
        (parse_net, "tap,brige=br0", "bridge"),
        (parse_share, "d,cahce=auto", "cache"),
        (parse_vfio, f"{BDF},backed=group", "backend"),
    ],
)
def test_a_key_that_is_nearly_right_is_suggested(
    parse: Callable[[str], Any], text: str, meant: str
) -> None:
    with pytest.raises(UserError, match="cannot use") as caught:
        parse(text)
    assert caught.value.hint.startswith(f"did you mean {meant}? ")
