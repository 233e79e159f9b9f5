"""Every command in README.md is run, as somebody who reads it would: on a terminal, by hand."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vmm.lab.guest.uki import guest_image

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PATIENCE = 300.0
"""Seconds for a command, on a busy machine."""

COMMANDS = re.findall(r"^    ((?:scripts/|pyvmm |truncate ).*?)(?: +#.*)?$", README, re.MULTILINE)

SHOWS = {
    "scripts/quickstart": "pyvmm guest: Linux",
    "scripts/test": "passed",
    "truncate -s 1G disk.img": "",
    "pyvmm vfio list --host lab:vfio": "0000:00:11.0",
    "pyvmm probe --host lab:gh200": "ARM_CACHEABLE_PFNMAP_SUPPORTED",
    "pyvmm map --host lab:gh200 --bar 0000:00:10.0:4": "region 4",
    "pyvmm verify --host lab:gh200 --bar 0000:00:10.0:0 --bar 0000:00:10.0:4": "forced WB",
    "pyvmm lab matrix gh200": "| region 4 |",
}
"""Commands that end by themselves, and what they print. The others are guests with a shell."""

INSTEAD = {"scripts/test": "scripts/test fast tests/config -q"}
"""All tests would be this one, too."""

IN_THE_GUEST = {
    "pyvmm run guest.img": ("grep -c ^processor /proc/cpuinfo", "1"),
    "pyvmm run --cpus 4 --memory 1G guest.img": ("grep -c ^processor /proc/cpuinfo", "4"),
    "pyvmm run --disk disk.img --net user --share . guest.img": (
        "mount -t virtiofs share /mnt; cd /sys; ls -d /mnt/d*.img block/vda class/net/eth0 | wc -l",
        "3",
    ),
    "pyvmm run --host lab:vfio --vfio 0000:00:11.0,bind guest.img": (
        "ls /sys/block",
        "nvme0n1",
    ),
}
"""What to type in the guest that a command boots, and a line that it then prints."""

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


class Place:
    """A directory with what README's commands need, and lab hosts that only they see."""

    def __init__(self, directory: Path, owned: ExitStack) -> None:
        self.directory = directory
        (directory / "guest.img").symlink_to(guest_image())
        (directory / "run").mkdir(mode=0o700)
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": str(directory / "run"),
        }
        self._up = ""
        owned.callback(self.run, "pyvmm lab down --all")

    def run(self, command: str) -> str:
        """Run a command in a shell, without a terminal; return what it printed."""
        done = subprocess.run(
            ["bash", "-c", re.sub("^scripts/", f"{ROOT}/scripts/", command)],
            cwd=self.directory,
            env=self.env,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def host(self, command: str) -> None:
        """Keep up the lab host that *command* runs in, and no other."""
        found = re.search(r"--host lab:(\S+)", command)
        profile = found[1] if found else "fwb"
        if profile != self._up:
            self.run(f"pyvmm lab down --all; pyvmm lab up {profile}")
            self._up = profile


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as owned:
        yield Place(tmp_path_factory.mktemp("readme"), owned)


class Typist:
    """Somebody at a terminal in which *command* runs."""

    def __init__(self, place: Place, command: str) -> None:
        self._terminal, theirs = pty.openpty()
        self.said = b""
        self.seen = b""
        """What was said up to the end of the last match, from the one before on."""
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=place.directory,
            env={**place.env, "TERM": "dumb"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._terminal, line.encode() + b"\r")

    def expect(self, pattern: bytes) -> None:
        """Wait until what was said since the last match matches."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.said)):
            assert time.monotonic() < deadline, self.said[-3000:]
            if select.select([self._terminal], [], [], 1)[0]:
                try:
                    self.said += os.read(self._terminal, 65536)
                except OSError as error:  # the last process that had it open has ended
                    raise AssertionError(self.said[-3000:]) from error
        self.seen, self.said = self.said[: match.end()], self.said[match.end() :]

    def finish(self) -> int:
        """Wait for the end of the command; return its exit status."""
        while True:
            try:
                self.said += os.read(self._terminal, 65536)
            except OSError:
                break
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """End what still runs."""
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


@pytest.mark.parametrize("command", [each for each in COMMANDS if each not in IN_THE_GUEST])
def test_a_command_of_the_readme_prints_what_it_should(place: Place, command: str) -> None:
    assert command in SHOWS, "say in this file what the command prints"
    if command.startswith("pyvmm") and "matrix" not in command:
        place.host(command)
    assert SHOWS[command] in place.run(INSTEAD.get(command, command))


@pytest.mark.parametrize("command", [each for each in COMMANDS if each in IN_THE_GUEST])
def test_a_guest_of_the_readme_has_what_was_given_to_it(place: Place, command: str) -> None:
    place.host(command)
    if "disk.img" in command:
        place.run("truncate -s 1G disk.img")
    typed, printed = IN_THE_GUEST[command]
    typist = Typist(place, command)
    try:
        typist.expect(rb"guest:\S*# ")
        typist.type(f"{typed}; echo so far")
        typist.expect(rb"\r\nso far\r\n")
        assert re.search(rb"\n" + re.escape(printed.encode()) + rb"\s", typist.seen), typist.seen
        typist.type("exit")
        assert typist.finish() == 0, typist.said[-3000:]
    finally:
        typist.close()


def test_the_readmes_python_is_python(place: Place) -> None:
    (code,) = re.findall(r"^    from vmm.*?(?=^\S)", README, re.MULTILINE | re.DOTALL)
    script = "\n".join(line.removeprefix("    ") for line in code.splitlines())
    place.host("")
    (place.directory / "readme.py").write_text(script + "\nprint('done')\n")
    assert place.run("pyvmm lab exec fwb -- python3 readme.py").endswith("done\n")
