"""`Machine`: what users of ``import vmm`` have in their hands. It drives an `Engine`."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from vmm.closeable import Closeable
from vmm.config import options as by_name
from vmm.errors import HostError, UserError
from vmm.kvm import exits
from vmm.library.registers import Vcpu
from vmm.library.transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Protocol

    from vmm.config import MachineConfig
    from vmm.errors import VmmError
    from vmm.kvm.exits import Exit
    from vmm.library.engine import Engine, Listener
    from vmm.machine.virtio_devices import MakeDevice

    class Place(Protocol):
        """Where machines run: here, or in a lab host."""

        def engine(
            self, config: MachineConfig, listener: Listener, devices: Sequence[MakeDevice]
        ) -> Engine:
            """Return a machine that was built and not started."""


class Here:
    """The host that this process runs on."""

    def engine(
        self, config: MachineConfig, listener: Listener, devices: Sequence[MakeDevice]
    ) -> Engine:
        """Return a machine in this process."""
        from vmm.library.local import LocalEngine

        return LocalEngine(config, listener, devices)


HERE: Final = Here()


class Access:
    """One access of the guest to addresses that `Machine.on_mmio` has.

    value  what the guest stores; None: it loads, and gets what the handler returns
    """

    __slots__ = ("address", "size", "value")

    def __init__(self, address: int, size: int, value: int | None) -> None:
        self.address, self.size, self.value = address, size, value

    @property
    def is_store(self) -> bool:
        """Whether the guest stores."""
        return self.value is not None


class Console(Transcript):
    """One of a machine's consoles."""

    def __init__(self, machine: Machine, port: str) -> None:
        super().__init__(port)
        self._machine, self._port = machine, port
        self._copy: Callable[[bytes], object] | None = None

    def send(self, text: str | bytes) -> None:
        """Type *text*. It waits in the machine until the guest has room. Thread-safe."""
        data = text.encode() if isinstance(text, str) else text
        self._machine.engine.send(self._port, data)

    def add(self, data: bytes) -> None:
        """Take what the guest said."""
        super().add(data)
        if self._copy is not None:
            self._copy(data)

    def copy_to(self, take: Callable[[bytes], object] | None) -> None:
        """Call *take* with all that the guest has said, is kept, and says from now on.

        It is called in a thread of the machine's, which waits; None ends that.
        """
        with self._machine.changes:
            self._copy = take
            if take is not None:
                take(self.output)

    def more(self, said: int, deadline: float) -> bool:
        """Wait until more was said, or the machine has ended."""
        return self._machine.wait_until(
            lambda: self.said != said or self._machine.ending is not None, deadline
        )

    def end(self) -> str | None:
        """Return how the machine ended; None: it has not."""
        return self._machine.end_in_words()


class Memory:
    """Guest memory, by guest physical address; the numbers are bytes."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __getitem__(self, where: slice | int) -> bytes:
        """Return ``memory[base:end]``, or the byte ``memory[address]``. Raises `GuestError`."""
        base, size = _range(where)
        return self._machine.engine.read(base, size)

    def __setitem__(self, where: slice | int, data: bytes) -> None:
        """Store *data*, which must be as long as the range. Raises `GuestError`."""
        base, size = _range(where)
        if len(data) != size:
            raise ValueError(f"{len(data)} bytes for a range of {size}")
        self._machine.engine.write(base, bytes(data))


def _range(where: slice | int) -> tuple[int, int]:
    if isinstance(where, int):
        return where, 1
    if where.step is not None or where.start is None or where.stop is None:
        raise TypeError("guest memory is read by [base:end]")
    if where.stop < where.start:
        raise ValueError(f"[{where.start:#x}:{where.stop:#x}] ends before it begins")
    return where.start, where.stop - where.start


class Machine(Closeable):
    """A machine; use it as a context manager. Its options are those of ``pyvmm run``, by name.

        with vmm.Machine("Image", memory="2G", cpus=4, disk=["root.img,ro"]) as machine: ...

    image    the kernel; see `vmm.config.options.machine` for *options*
    config   a configuration, instead of image and options
    devices  kinds of `VirtioDevice` of yours; on this host only
    on       a `Lab`; None: this host

    The process is not sealed, unlike that of ``pyvmm run``: it is yours. Raises `UserError` and
    `HostError` if the machine cannot be built.
    """

    def __init__(
        self,
        image: str | Path | None = None,
        /,
        *,
        config: MachineConfig | None = None,
        devices: Sequence[MakeDevice] = (),
        on: Place | None = None,
        **options: Any,
    ) -> None:
        if config is not None and (image is not None or options):
            raise UserError("config: it has the image and the options", "give one or the other")
        self.config: Final = config or by_name.machine(image, **options)
        self.changes = threading.Condition()
        """Held while output is taken; notified of it, and of the end."""
        self._hooks: list[Callable[[Access], int | None]] = []
        self._exit_hooks: list[Callable[[int, Exit], object]] = []
        self._event_hooks: list[Callable[[Mapping[str, Any]], object]] = []
        self._how: str | None = None
        self._error: VmmError | None = None
        self._error_told = False
        self.events: list[Mapping[str, Any]] = []
        """The last `EVENTS` events, with the member "event" that names each."""
        self.serial = Console(self, "serial")
        """The serial port, a PL011."""
        self._virtio = Console(self, "virtio")
        self.memory = Memory(self)
        self.engine: Engine = (on or HERE).engine(self.config, self, devices)
        self.vcpus: Final = [Vcpu(self.engine, number) for number in range(self.config.cpus)]

    @property
    def console(self) -> Console:
        """The user's console: hvc0 with ``console="stdio"``, else the serial port."""
        stdio = any(each.kind == "stdio" and not each.name for each in self.config.consoles)
        return self._virtio if stdio else self.serial

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Power on; once. Raises `UserError` the second time."""
        self.engine.start()

    def pause(self) -> None:
        """Return once no vCPU runs and no queue is served. Calls nest. Raises `HostError`."""
        self.engine.pause()

    def resume(self) -> None:
        """Undo one `pause`. Raises `UserError` if there was none."""
        self.engine.resume()

    def step(self, vcpu: int = 0) -> None:
        """Let one vCPU of the paused machine execute one instruction, while the others wait.

        Raises `HostError` if it is not over in time; `UserError` while gdb is attached.
        """
        self.engine.step(vcpu)

    def reset(self) -> None:
        """Reset the machine, as its button does."""
        self.engine.reset()

    def stop(self) -> None:
        """Switch the machine off. Returns at once: see `wait`."""
        self.engine.stop()

    @property
    def state(self) -> str:
        """``new``, ``running``, ``paused`` or ``ended``."""
        return self.engine.state()

    @property
    def ending(self) -> str | None:
        """How the machine ended: a value of `vmm.machine.machine.Ending`; None: it has not."""
        with self.changes:
            return self._how

    def wait(self, timeout: float | None = None) -> str:
        """Wait for the end, for at most *timeout* seconds; return `ending`.

        Raises the error that the machine ended with, and TimeoutError.
        """
        with self.changes:
            if not self.changes.wait_for(lambda: self._how is not None, timeout):
                raise TimeoutError(f"the machine still runs after {timeout:g} s")
            self._error_told = True
            if self._error is not None:
                raise self._error
            assert self._how is not None
            return self._how

    def wait_for_end(self, left: threading.Event) -> None:
        """Wait until the machine has ended or *left* is set."""
        while self.ending is None and not left.wait(LOOK):
            pass

    def close(self) -> None:
        """End the machine, and release what it has. Idempotent."""
        self.engine.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        if kind is None and self._error is not None and not self._error_told:
            raise self._error

    # --- hooks ----------------------------------------------------------------------------------

    def on_mmio(
        self, addresses: range
    ) -> Callable[[Callable[[Access], int | None]], Callable[[Access], int | None]]:
        """Decorate a function that answers the guest's accesses to *addresses*.

        It is called in the vCPU's thread, which waits: a load gets the number that it returns (None
        is zero). It must not call `pause`. Raises `UserError` if memory or a device is there.
        """

        def register(handler: Callable[[Access], int | None]) -> Callable[[Access], int | None]:
            with self.changes:
                self._hooks.append(handler)
                number = len(self._hooks) - 1
            self.engine.claim(number, addresses.start, len(addresses))
            return handler

        return register

    def on_exit(self, handler: Callable[[int, Exit], object]) -> Callable[[int, Exit], object]:
        """Decorate a function that hears of each exit: the vCPU's number, the `vmm.kvm.exits` one.

        Before `start`. It is called in the vCPU's thread, which waits. Exits are then slow: none is
        answered in C.
        """
        if not self._exit_hooks:
            self.engine.watch_exits()
        self._exit_hooks.append(handler)
        return handler

    def on_event(
        self, handler: Callable[[Mapping[str, Any]], object]
    ) -> Callable[[Mapping[str, Any]], object]:
        """Decorate a function that hears of each event, such as a panic, in a thread of ours."""
        self._event_hooks.append(handler)
        return handler

    # --- the listener ---------------------------------------------------------------------------

    def output(self, port: str, data: bytes) -> None:
        """Take what the guest said."""
        with self.changes:
            (self.serial if port == "serial" else self._virtio).add(data)
            self.changes.notify_all()

    def event(self, fields: Mapping[str, Any]) -> None:
        """Take an event."""
        self.events = [*self.events[-EVENTS + 1 :], fields]
        for handler in self._event_hooks:
            handler(fields)

    def access(self, hook: int, address: int, size: int, value: int | None) -> int:
        """Answer an access."""
        return self._hooks[hook](Access(address, size, value)) or 0

    def exit(self, vcpu: int, kind: str, fields: Sequence[Any]) -> None:
        """Take an exit."""
        parts = [tuple(each) if isinstance(each, list) else each for each in fields]
        exit_ = getattr(exits, kind)(*parts)
        for handler in self._exit_hooks:
            handler(vcpu, exit_)

    def ended(self, how: str, error: VmmError | None) -> None:
        """Take the end."""
        with self.changes:
            if self._how is None:
                self._how, self._error = how, error
            self.changes.notify_all()

    def wait_until(self, what: Callable[[], bool], deadline: float) -> bool:
        """Wait until *what* is true after output or the end; return False at *deadline*."""
        with self.changes:
            return self.changes.wait_for(what, max(0.0, deadline - time.monotonic()))

    def end_in_words(self) -> str | None:
        """Return how the machine ended, or that it was not started; None: it runs."""
        if self.ending is None:
            return None
        return (
            f"the machine has {self.ending}: {self._error}"
            if self._error
            else (f"the machine has {self.ending}")
        )


LOOK: Final = 0.05
"""Seconds between looks whether somebody has left the console."""

EVENTS: Final = 10_000
"""Events that a machine keeps."""


__all__ = ["Access", "Console", "HostError", "Machine", "Memory"]
