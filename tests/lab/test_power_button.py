"""A power button that a guest of Debian's hears: ``pyvmm stop --power-button``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab.moving import WORDS, inside, place
from vmm.lab.guest import fixture
from vmm.lab.host.emulated_host import Host
from vmm.library.command import Command

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

# struct input_event of 64 bits: two longs of time, then type 1 (EV_KEY), code 116 (KEY_POWER), and
# value: 1 as it is pressed, 0 as it is let go of. init powers off when the script has ended: here,
# when the button was let go of for the second time.
LISTEN = """
until [ -c /dev/input/event0 ]; do :; done
exec 3</dev/input/event0
echo listening
heard() { dd bs=24 count=1 <&3 2>/dev/null | od -An -j16 -tu2 | tr -s ' '; }
while [ "${times:-0}" -lt 2 ]; do
    case $(heard) in
    " 1 116 1 0") echo pressed ;;
    " 1 116 0 0") times=$((times + 1)); echo let go of ;;
    esac
done
"""


def test_a_guest_hears_the_power_button(lab_host: Callable[[str], Host]) -> None:
    host = lab_host("fwb")
    guest = fixture.guest(modules=["gpio_keys", "evdev"], script=LISTEN)
    directory = place(host)
    run = ["pyvmm", "run", "--host", "native", "--name", "button", "--cmdline", WORDS]
    run += ["--initrd", f"/host{guest.initrd}", f"/host{guest.kernel}"]
    stop = ["pyvmm", "stop", "--host", "native", "button", "--power-button"]
    with Command(host, inside(directory, run)) as talk:
        talk.expect("listening")
        done = host.run([*stop, "1"])
        assert done.status == 3, done.stderr
        assert done.stderr == b"pyvmm: button runs on after 1 s\n"
        talk.expect("pressed")
        talk.expect("let go of")
        assert host.run([*stop, "300"]).status == 0
        assert talk.finish() == 0, talk.story()


def test_a_guest_that_does_not_listen_is_told_of(lab_host: Callable[[str], Host]) -> None:
    host = lab_host("fwb")
    guest = fixture.guest(script="echo deaf; read -r line")
    run = ["pyvmm", "run", "--host", "native", "--name", "deaf", "--cmdline", WORDS]
    run += ["--initrd", f"/host{guest.initrd}", f"/host{guest.kernel}"]
    stop = ["pyvmm", "stop", "--host", "native", "deaf", "--power-button", "60"]
    with Command(host, run) as talk:
        talk.expect("deaf")
        done = host.run(stop)
        assert done.status == 2
        assert b"the guest does not listen to its power button" in done.stderr
        talk.send(b"end\n")
        assert talk.finish() == 0, talk.story()
