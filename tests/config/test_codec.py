"""A machine's configuration, sent as JSON: what arrives is what was sent."""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from enum import Enum
from importlib import import_module
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from pkgutil import iter_modules

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmm.config
from vmm.config import MachineConfig, codec
from vmm.config.bar import BarConfig
from vmm.config.console import ConsoleConfig
from vmm.config.disk import DiskConfig
from vmm.config.firmware import FlashConfig
from vmm.config.net import Forward, NetConfig, NetKind
from vmm.config.pmem import PmemConfig
from vmm.config.share import ShareConfig
from vmm.config.vfio import VfioConfig
from vmm.errors import UserError

TEXT = st.text(st.characters(exclude_characters="\0"), max_size=8)
# With what file names may have that is no UTF-8, as Python's strings have it.
NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8") | st.just("\udcff"))
PATHS = st.builds(lambda parts: Path("/", *parts), st.lists(NAMES, max_size=3))
FLAGS = st.booleans()
NUMBERS = st.integers(0, 1 << 64)

BARS = st.builds(BarConfig, st.just("0000:01:00.0"), NUMBERS, st.none() | NUMBERS, TEXT)
CONSOLES = st.builds(ConsoleConfig, TEXT, st.none() | PATHS, TEXT)
DISKS = st.builds(DiskConfig, PATHS, FLAGS, TEXT, NUMBERS, TEXT, TEXT)
FLASHES = st.builds(FlashConfig, PATHS, FLAGS)
NETS = st.builds(
    NetConfig,
    TEXT,
    st.sampled_from(NetKind),
    TEXT,
    mac=st.none() | st.binary(min_size=6, max_size=6),
    mtu=st.none() | NUMBERS,
    queues=NUMBERS,
    vhost=st.none() | FLAGS,
    bridge=st.none() | TEXT,
    address=st.none()
    | st.ip_addresses(v=4).map(lambda ip: IPv4Interface(f"{ip}/24"))
    | st.ip_addresses(v=6).map(lambda ip: IPv6Interface(f"{ip}/64")),
    forwards=st.lists(st.builds(Forward, TEXT, NUMBERS, NUMBERS), max_size=2).map(tuple),
)
PMEMS = st.builds(PmemConfig, PATHS, FLAGS, NUMBERS, st.none() | PATHS)
SHARES = st.builds(ShareConfig, PATHS, TEXT, FLAGS, TEXT)
VFIOS = st.builds(VfioConfig, st.just("0000:02:00.0"), TEXT, FLAGS | PATHS, FLAGS, st.just("auto"))


def several(each: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(each, max_size=2).map(tuple)


MACHINES = st.builds(
    MachineConfig,
    image=PATHS,
    flash=st.none() | FLASHES,
    initrd=st.none() | PATHS,
    cmdline=st.none() | TEXT,
    cpus=st.integers(1, 512),
    memory=st.integers(1 << 32, 1 << 40),
    reboot=FLAGS,
    bars=st.lists(BARS, max_size=2, unique_by=lambda bar: bar.base).map(tuple),
    write_back=FLAGS,
    uapi=TEXT,
    verify=FLAGS,
    rng=FLAGS,
    disks=several(DISKS),
    nets=st.lists(NETS, max_size=2, unique_by=lambda net: net.mac).map(tuple),
    vsock=st.none() | NUMBERS,
    shares=several(SHARES),
    vfio=st.lists(VFIOS, max_size=1).map(tuple),
    transport=TEXT,
    consoles=st.lists(CONSOLES, max_size=1).map(tuple),
    balloon=st.none() | st.integers(0, 1 << 31),
    pmems=several(PMEMS),
)


def unchanged(path: Path) -> Path:
    return path


@given(MACHINES)
def test_what_arrives_is_what_was_sent(config: MachineConfig) -> None:
    assert codec.loads(codec.dumps({"config": config}, unchanged)) == {"config": config}


@given(MACHINES)
def test_every_path_is_translated_and_nothing_else(config: MachineConfig) -> None:
    """Whatever a path looks like: it is known by its type."""

    def there(path: Path) -> Path:
        return Path("/host", *path.parts[1:])

    arrived = codec.loads(codec.dumps({"config": config}, there))["config"]
    assert arrived.image == there(config.image or Path())
    assert [disk.path for disk in arrived.disks] == [there(disk.path) for disk in config.disks]
    assert [(s.path, s.tag) for s in arrived.shares] == [
        (there(s.path), s.tag) for s in config.shares
    ]
    assert [v.rom for v in arrived.vfio] == [
        there(v.rom) if isinstance(v.rom, Path) else v.rom for v in config.vfio
    ]
    assert arrived.cmdline == config.cmdline
    assert arrived.nets == config.nets


def test_only_what_is_not_the_default_is_sent() -> None:
    config = MachineConfig(image=Path("a"), disks=(DiskConfig(Path("d"), read_only=True),))
    assert json.loads(codec.dumps({"config": config, "escape": 1}, unchanged)) == {
        "config": {
            "MachineConfig": {
                "image": {"Path": "a"},
                "disks": [{"DiskConfig": {"path": {"Path": "d"}, "read_only": True}}],
            }
        },
        "escape": 1,
    }


def test_every_type_of_configuration_can_be_sent() -> None:
    found = {
        name
        for module in iter_modules(vmm.config.__path__)
        for name, kind in vars(import_module(f"vmm.config.{module.name}")).items()
        if isinstance(kind, type)
        and kind.__module__ == f"vmm.config.{module.name}"
        and (is_dataclass(kind) or issubclass(kind, (tuple, Enum)))
    }
    ours = {name for name, module in codec.MODULES.items() if module.startswith("vmm.config.")}
    assert found - {"Key"} == ours  # a rule of the command line, not a value
    for name, module in codec.MODULES.items():
        assert isinstance(getattr(import_module(module), name), type)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"config":{"Popen":{}}}',
        '{"config":{"MachineConfig":{"colour":1}}}',
        '{"config":{"MachineConfig":{},"Path":""}}',
    ],
)
def test_text_that_is_no_configuration_is_a_user_error(text: str) -> None:
    with pytest.raises(UserError, match="not a machine's configuration"):
        codec.loads(text)


def test_what_cannot_be_sent_is_not_sent() -> None:
    with pytest.raises(TypeError):
        codec.dumps({"config": object()}, unchanged)
