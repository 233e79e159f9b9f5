"""Waiting for what a guest says."""

from __future__ import annotations

import threading
import time

import pytest

from vmm.errors import GuestError
from vmm.library import transcript
from vmm.library.transcript import NotSaidError, Transcript


class Voice(Transcript):
    """Somebody who speaks in another thread, as a machine does."""

    def __init__(self) -> None:
        super().__init__("voice")
        self.changed = threading.Condition()
        self.ended: str | None = None

    def speak(self, data: bytes) -> None:
        with self.changed:
            self.add(data)
            self.changed.notify_all()

    def more(self, said: int, deadline: float) -> bool:
        left = max(0.0, deadline - time.monotonic())
        with self.changed:
            return self.changed.wait_for(lambda: self.said != said or bool(self.ended), left)

    def end(self) -> str | None:
        return self.ended


def test_each_match_is_behind_the_last() -> None:
    voice = Voice()
    voice.add(b"login: root\nlogin: guest\n")
    assert voice.expect(r"login: (\w+)")[1] == b"root"
    assert voice.expect(rb"login: (\w+)")[1] == b"guest"
    with pytest.raises(NotSaidError, match=r"voice: no 'login' in 0.01 s; its last words"):
        voice.expect("login", timeout=0.01)


def test_what_comes_while_somebody_waits_is_heard() -> None:
    voice = Voice()

    def speak() -> None:
        for letter in b"a long word":
            time.sleep(0.002)
            voice.speak(bytes([letter]))

    speaker = threading.Thread(target=speak)
    speaker.start()
    assert voice.expect("long wor.", timeout=20)[0] == b"long word"
    speaker.join()


def test_an_end_ends_the_wait_but_the_last_words_count() -> None:
    voice = Voice()
    voice.add(b"bye")
    voice.ended = "it has stopped"
    assert voice.expect("bye")
    with pytest.raises(GuestError, match="it has stopped, without 'hello'"):
        voice.expect("hello")


def test_a_guest_that_talks_without_end_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "KEPT", 100)
    voice = Voice()
    voice.add(b"x" * 90)
    assert voice.expect("x{90}")
    voice.add(b"y" * 1000 + b"end")
    assert len(voice.output) == 100
    assert voice.expect("y*end").start() == 0
    assert voice.said == 1093
