"""The host's side of a command in the guest, with a guest that is only queues and pipes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

from vmm.config.command import STATUS, STDERR, STDIN, STDOUT
from vmm.errors import GuestError, HostError
from vmm.loop import Loop
from vmm.machine.guest_command import KEPT, GuestCommand
from vmm.machine.machine import Ending
from vmm.virtio.console.chardev.pipes import PipeChardev

NAMES = (STDIN, STDOUT, STDERR, STATUS)


class Guest:
    """A machine, its console device and what the guest has put into that one's queues."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.console = self.output = self
        self.panic_reason = ""
        self.pipes = {name: PipeChardev(loop) for name in NAMES}
        self.queued = dict.fromkeys(NAMES, b"")
        self.serial = b""
        self.ended: Ending | None = None

    def pipe(self, name: str) -> tuple[PipeChardev, int]:
        return self.pipes[name], NAMES.index(name)

    def process(self, queue: int) -> None:
        name = NAMES[queue]
        if self.queued[name]:
            done = os.write(self.pipes[name].output_fd, self.queued[name][:5000])
            self.queued[name] = self.queued[name][done:]

    def fileno(self) -> int:
        return self.pipes[STDIN].fileno()  # any that is never readable

    def told(self, ending: Ending) -> str:
        reason = f": {self.panic_reason}" if self.panic_reason else ""
        return f"the guest has {ending.value}{reason}"

    def drain(self, limit: int) -> bytes:
        data, self.serial = self.serial[:limit], self.serial[limit:]
        return data

    def end(self, ending: Ending) -> None:
        self.ended = self.ended or ending
        self.loop.stop()

    def report(self, text: bytes) -> None:
        os.write(self.pipes[STATUS].output_fd, text)


Join = tuple[Guest, GuestCommand, int, int]


@pytest.fixture
def filtered() -> bool:
    return False


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch, *, filtered: bool) -> Iterator[Join]:
    """Return a guest, its command, and our ends of its standard input and output."""
    with Loop() as loop:
        guest = Guest(loop)
        stdin, ours = os.pipe()
        reading, stdout = os.pipe()
        monkeypatch.setattr("vmm.machine.guest_command.standard_input", lambda: stdin)
        monkeypatch.setattr("vmm.machine.guest_command.standard_output", lambda: stdout)
        command = GuestCommand(loop, guest, None, terminal=False, filtered=filtered)  # type: ignore[arg-type]
        with command:
            os.close(stdout)
            yield guest, command, ours, reading
        for pipe in guest.pipes.values():
            pipe.close()
        for fd in (stdin, ours, reading):
            with suppress(OSError):
                os.close(fd)


def test_the_status_is_the_result(joined: Join) -> None:
    guest, command, _, _ = joined
    guest.report(b"started\nexit 7\n")
    guest.loop.run()
    assert guest.ended is Ending.COMMAND_ENDED
    assert command.result(guest.ended) == 7


def test_what_is_still_in_the_queue_when_the_status_comes_is_not_lost(joined: Join) -> None:
    guest, command, _, reading = joined
    data = bytes(range(256)) * 100
    guest.queued[STDOUT] = data
    guest.report(b"started\nexit 0\n")
    guest.loop.run()
    for each in command.consoles:
        each.flush()
    assert os.read(reading, 1 << 20) == data


@pytest.mark.parametrize("filtered", [True])
def test_with_a_filter_no_control_character_comes_through(
    joined: Join, capsys: pytest.CaptureFixture[str]
) -> None:
    guest, command, _, reading = joined
    guest.queued[STDOUT] = b"\x1b]52;c;x\x07 a\tb\n"
    command.serial = b"panic \x1b[2J"
    guest.report(b"started\nexit 0\n")
    guest.loop.run()
    for each in command.consoles:
        each.flush()
    assert os.read(reading, 1 << 20) == b"^[]52;c;x^G a\tb\n"
    command._show_serial()
    assert capsys.readouterr().err == "panic ^[[2J\n"


def test_input_ends_after_the_guest_has_all_of_it(joined: Join) -> None:
    guest, _, ours, _ = joined
    os.write(ours, b"hi\n")
    os.close(ours)
    guest.pipes[STDIN].on_input = guest.loop.stop
    guest.loop.run()
    fd = guest.pipes[STDIN].input_fd
    assert (os.read(fd, 100), os.read(fd, 100)) == (b"hi\n", b"")
    guest.pipes[STDIN].input_ended()
    assert not guest.pipes[STDIN].connected


def test_a_reader_that_goes_away_is_sigpipe(joined: Join) -> None:
    guest, command, _, reading = joined
    os.close(reading)
    os.write(guest.pipes[STDOUT].output_fd, b"y\n")
    guest.loop.run()
    assert guest.ended is Ending.COMMAND_ENDED
    assert command.result(guest.ended) == 128 + 13


def test_a_full_disk_is_an_error_of_the_host(joined: Join) -> None:
    _, command, _, _ = joined
    command.consoles[0].on_output_error(OSError(28, "No space left on device"))
    with pytest.raises(HostError, match=r"^standard output: No space left on device; "):
        command.result(Ending.COMMAND_ENDED)


@pytest.mark.parametrize(
    ("report", "panic", "ending", "message"),
    [
        (b"", "", Ending.POWERED_OFF, "the guest has powered-off before COMMAND could start"),
        (b"started\n", "", Ending.RESET, "the guest has reset before COMMAND had ended"),
        (
            b"started\n",
            "oops",
            Ending.PANICKED,
            "the guest has panicked: oops before COMMAND had ended",
        ),
        (
            b"error cannot mount /d\n",
            "",
            Ending.COMMAND_ENDED,
            "COMMAND: the guest cannot mount /d",
        ),
        (b"exit 256\n", "", Ending.COMMAND_ENDED, "COMMAND: the guest 256"),
    ],
)
def test_a_guest_that_fails_shows_its_messages_and_one_line(  # noqa: PLR0917
    joined: Join,
    capsys: pytest.CaptureFixture[str],
    report: bytes,
    panic: str,
    ending: Ending,
    message: str,
) -> None:
    guest, command, _, _ = joined
    guest.serial = b"x" * KEPT + b"\r\nlast words\r\n"
    guest.panic_reason = panic
    guest.report(report)
    with pytest.raises(GuestError) as error:
        command.result(ending)
    assert str(error.value) == message
    shown = capsys.readouterr().err
    assert shown.endswith("x\nlast words\n")
    assert len(shown) < KEPT


def test_without_a_failure_the_serial_console_is_not_shown(
    joined: Join, capsys: pytest.CaptureFixture[str]
) -> None:
    guest, command, _, _ = joined
    guest.serial = b"\r\npyvmm guest: Linux\r\n"
    guest.report(b"started\nexit 0\n")
    assert command.result(Ending.COMMAND_ENDED) == 0
    assert capsys.readouterr() == ("", "")
