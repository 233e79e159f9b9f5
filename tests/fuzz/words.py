"""Targets: text of users and of the other end of an `exec`, and bytes for the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.target import Target, by_property
from tests.terminal import test_escape, test_output_filter
from vmm.config import MachineConfig, codec
from vmm.config.bar import parse_bar
from vmm.config.bdf import parse_bdf
from vmm.config.console import parse_console
from vmm.config.disk import parse_disk
from vmm.config.firmware import parse_flash
from vmm.config.incoming import parse_incoming
from vmm.config.net import parse_net
from vmm.config.pmem import parse_pmem
from vmm.config.share import parse_share
from vmm.config.size import parse_size
from vmm.config.vfio import parse_vfio
from vmm.config.vsock import parse_vsock
from vmm.errors import UserError
from vmm.state import manifest

PARSERS: dict[str, tuple[Callable[[str], object], Sequence[str]]] = {
    "disk": (parse_disk, ("a.img", "a.img,ro,serial=x,format=qcow2", "a,,b.img,cache=none")),
    "net": (
        parse_net,
        (
            "user",
            "user,hostfwd=tcp:2222-:22,host=on",
            "tap=tap0,mac=52:54:00:01:02:03,queues=2",
            "tap,bridge=br0,address=10.0.0.1/24",
        ),
    ),
    "share": (parse_share, (".", "a,tag=x,ro", "a:b")),
    "console": (parse_console, ("pty", "unix:a,name=agent", "stdio")),
    "flash": (parse_flash, ("a.fd", "a.fd,ro")),
    "pmem": (parse_pmem, ("a.img", "a.img,size=1G,ro")),
    "vfio": (parse_vfio, ("0000:00:11.0,bind", "0000:00:11.0,rom=off")),
    "bar": (parse_bar, ("0000:00:10.0:4", "0000:00:10.0:4,address=0x10000000000")),
    "bdf": (parse_bdf, ("0000:0a:00.0", "0a:00.0")),
    "size": (partial(parse_size, option="--memory"), ("1G", "512M", "0x1000", "1.5G")),
    "incoming": (parse_incoming, ("unix:a", "tcp:[::1]:7100,tls=off", "tcp:a:1,tls=/a,,b")),
    "vsock": (parse_vsock, ("3", "auto")),
}

SAMPLES = Path(__file__).parents[1] / "state" / "samples"


def clear(error: UserError) -> None:
    """Check that *error* says something."""
    assert len(str(error)) > 10


def option(data: bytes) -> None:
    """Parse an option's value by the parser that the first byte chooses."""
    names = list(PARSERS)
    parse, _ = PARSERS[names[data[0] % len(names) if data else 0]]
    text = data[1:].decode(errors="surrogateescape")
    try:
        parse(text)
    except UserError as error:
        clear(error)


def of_options() -> Sequence[bytes]:
    return [
        bytes([index]) + sample.encode()
        for index, (_, samples) in enumerate(PARSERS.values())
        for sample in samples
    ]


def configuration(data: bytes) -> None:
    """Decode a machine's configuration as it comes from another process."""
    try:
        values = codec.loads(data.decode(errors="surrogateescape"))
    except UserError:
        return
    assert isinstance(values, dict)
    again = codec.dumps(values, lambda path: path)
    assert codec.loads(again) == values


def of_configurations() -> Sequence[bytes]:
    config = MachineConfig(
        image=Path("Image"), disks=(parse_disk("a.img,ro"),), nets=(parse_net("user"),), cpus=2
    )
    return [codec.dumps({"config": config}, lambda path: path).encode(), b"{}", b'{"a": [1, "x"]}']


def snapshot(data: bytes) -> None:
    """Read a snapshot's manifest, whose checksum was made right."""
    try:
        value = json.loads(data)
        value["checksum"] = manifest._checksum(value)
        data = json.dumps(value).encode()
    except (ValueError, RecursionError, TypeError, AttributeError):
        """Then it is no object of JSON."""
    with TemporaryDirectory() as place:
        (Path(place) / manifest.NAME).write_bytes(data)
        try:
            found = manifest.read(Path(place))
        except UserError as error:
            clear(error)
            return
        (Path(place) / manifest.NAME).write_text(manifest.text(found))
        assert manifest.read(Path(place)) == found


def of_snapshots() -> Sequence[bytes]:
    return [path.read_bytes() for path in sorted(SAMPLES.glob("*.json"))]


TARGETS = (
    Target(
        "snapshot",
        "a snapshot's manifest; read, or refused by a clear line",
        snapshot,
        of_snapshots,
        2 * 4096,
    ),
    Target(
        "option", "values of options; parsed, or refused by a clear line", option, of_options, 512
    ),
    Target(
        "codec", "a configuration's text; what is read comes back", configuration, of_configurations
    ),
    by_property(
        "output-filter",
        "a guest's output; no control character reaches the terminal",
        test_output_filter.test_no_escape_and_no_other_control_reaches_the_terminal,
    ),
    by_property(
        "escape",
        "what is typed; without the prefix it all is the guest's",
        test_escape.test_without_a_prefix_all_bytes_are_the_guests,
    ),
)
