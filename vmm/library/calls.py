"""Calls to a machine of this process from any thread: each is made in the thread of its loop."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, TypeVar

from vmm.arm64.register_names import id_of, name_of
from vmm.closeable import Closeable
from vmm.errors import HostError, UserError
from vmm.library.step import Step
from vmm.machine.machine import Ending

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.kvm.vcpu import Vcpu
    from vmm.loop import Loop
    from vmm.machine.machine import Machine

T = TypeVar("T")

LOOK: Final = 1.0
"""Seconds after which a caller looks whether the loop's thread is still there."""
STEP_TIMEOUT: Final = 10.0
"""Seconds that one instruction may take."""


class Calls(Closeable):
    """The part of `vmm.library.engine.Engine` that asks a machine whose loop has a thread.

    Set ``_machine``, ``_loop``, ``_thread`` (the loop's), and ``_state`` (new, running or ended).
    """

    _machine: Machine
    _loop: Loop
    _thread: threading.Thread
    _state: str

    def __init__(self) -> None:
        self._handlers = threading.local()

    def _call(self, what: Callable[[], T]) -> T:
        """Return the result of *what*, called in the loop's thread."""
        if threading.current_thread() is self._thread:
            return what()
        done: Future[T] = Future()

        def do() -> None:
            try:
                done.set_result(what())
            except BaseException as error:  # noqa: BLE001  (it belongs to the caller)
                done.set_exception(error)

        self._loop.call_soon_threadsafe(do)
        while self._thread.is_alive():
            try:
                return done.result(timeout=LOOK)
            except TimeoutError:
                if done.done():  # it is the call's own
                    raise
        raise HostError("the machine is closed")

    def pause(self) -> None:
        """Hold the machine still."""
        if getattr(self._handlers, "active", False):
            raise UserError("a handler of the guest's exits cannot pause its own vCPU", "see stop")
        self._call(self._machine.pause)

    def resume(self) -> None:
        """Undo one `pause`."""

        def do() -> None:
            if not self._machine.paused:
                raise UserError("the machine is not paused", "pause it first")
            self._machine.resume()

        self._call(do)

    def step(self, vcpu: int) -> None:
        """Let one vCPU of a paused machine execute one instruction, while the others wait.

        Raises `HostError` for an instruction that takes `STEP_TIMEOUT` seconds.
        """
        step = self._call(lambda: self._begin_step(vcpu))
        ended = step.over.wait(STEP_TIMEOUT)
        self._call(step.end)
        if not ended:
            raise HostError(
                f"vCPU {vcpu}: the instruction is not over after {STEP_TIMEOUT:g} s",
                "it may wait for an interrupt: resume the machine",
            )

    def _begin_step(self, number: int) -> Step:
        self._vcpu(number)  # it is there, and the machine is paused
        assert self._machine.power is not None, "the vCPU is its"
        return Step(self._machine, self._machine.power, number)

    def reset(self) -> None:
        """Begin another power cycle."""
        self._machine.end(Ending.RESET)

    def stop(self) -> None:
        """End the machine."""
        self._machine.end(Ending.QUIT)

    def state(self) -> str:
        """Return ``new``, ``running``, ``paused`` or ``ended``."""
        paused = self._state != "ended" and self._machine.paused
        return "paused" if paused else self._state

    def read(self, address: int, size: int) -> bytes:
        """Return guest memory."""
        return self._call(lambda: self._machine.space.memory.read(address, size))

    def write(self, address: int, data: bytes) -> None:
        """Write guest memory."""
        self._call(lambda: self._machine.space.memory.write(address, data))

    def registers(self, vcpu: int) -> list[str]:
        """Return the names of a vCPU's registers."""
        return self._call(lambda: [name_of(each) for each in self._vcpu(vcpu).get_reg_list()])

    def get_register(self, vcpu: int, name: str) -> int:
        """Return a register."""
        return self._call(lambda: self._vcpu(vcpu).get_one_reg(_id(name)))

    def set_register(self, vcpu: int, name: str, value: int) -> None:
        """Set a register."""
        self._call(lambda: self._vcpu(vcpu).set_one_reg(_id(name), value))

    def _vcpu(self, number: int) -> Vcpu:
        if self._machine.power is None or self._state != "running":
            raise UserError("no vCPU exists before the start and after the end", "see start")
        if not self._machine.paused:
            raise UserError("registers of a vCPU that runs cannot be read", "pause the machine")
        try:
            return self._machine.power.vcpus[number]
        except IndexError:
            raise UserError(f"there is no vCPU {number}", "see vcpus") from None


def _id(name: str) -> int:
    try:
        return id_of(name)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{name}: there is no such register", "registers has their names"
        ) from error
