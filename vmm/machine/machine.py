"""One machine: its parts, and its life from power-on to power-off.

Parts that only some machines have (flash, PCI, passthrough, virtio) are imported when the
configuration asks for them.
"""

from __future__ import annotations

import errno
import time
from contextlib import ExitStack, contextmanager
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from vmm import sandbox, sigbus
from vmm.address_range import AddressRange
from vmm.arm64 import layout
from vmm.arm64.payload import Files
from vmm.bus import MmioBus
from vmm.closeable import Closeable
from vmm.devices.pl011 import FIFO_DEPTH, Pl011
from vmm.devices.pl031 import Pl031
from vmm.devices.pl061 import Pl061
from vmm.devices.pvpanic import PvPanic
from vmm.errors import GuestError, HostError, UserError, VmmError
from vmm.irq import SwitchableLine
from vmm.kvm.exits import SystemEvent, SystemEventType
from vmm.kvm.fd import KvmError
from vmm.kvm.mmio_fastpath import DeviceFastpath, MmioFastpath, Sink
from vmm.kvm.system import System
from vmm.long_work import LongWork
from vmm.machine.address_space import AddressSpace
from vmm.machine.addresses import named
from vmm.machine.isolate import isolate
from vmm.machine.panic_watch import PanicWatch
from vmm.machine.pause import Pause
from vmm.machine.power_cycle import PowerCycle
from vmm.machine.ram_file import write_ram
from vmm.machine.vmgenid import VmGenId
from vmm.observe.observatory import Observatory
from vmm.observe.phases import Phases, WordsWatch
from vmm.observe.trace import process_start

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator, Iterator, Sequence

    from vmm.arm64.payload import Payload
    from vmm.bus import BusDevice
    from vmm.coherence.ledger import Ledger
    from vmm.config import MachineConfig
    from vmm.events import Events
    from vmm.kvm.exits import Exit
    from vmm.loop import Loop
    from vmm.machine.flash import Flash
    from vmm.machine.incoming import Incoming
    from vmm.machine.memory_dump import MemoryDump
    from vmm.machine.outgoing import Gone, Outgoing
    from vmm.machine.pci_root import PciRoot
    from vmm.machine.restore import Restore
    from vmm.machine.snapshot import Described, Parts, Snapshots, Taken
    from vmm.machine.vcpu_thread import Reason
    from vmm.machine.virtio_devices import MakeDevice, VirtioDevices
    from vmm.observe.counters import Counters
    from vmm.observe.trace import Trace
    from vmm.passthrough.devices import Passthrough
    from vmm.state.baseline import Baseline
    from vmm.state.visible_cpu import VisibleCpu
    from vmm.virtio.balloon import Balloon
    from vmm.virtio.console.chardev.pipes import PipeChardev
    from vmm.virtio.console.device import Console

Result = TypeVar("Result")

LOOP_RESETS: Final = 5
LOOP_SECONDS: Final = 120.0
"""A reset loop: `LOOP_RESETS` resets in a row, each within `LOOP_SECONDS` of power-on. A busy
emulated host takes 40 s for a kernel that boots, panics and resets."""


class Ending(Enum):
    """How a power cycle ended."""

    POWERED_OFF = "powered-off"
    RESET = "reset"
    CRASHED = "crashed"
    PANICKED = "panicked"
    TIMED_OUT = "timed-out"
    COMMAND_ENDED = "command-ended"
    SAVED = "saved"
    MOVED = "moved"
    QUIT = "quit"


ENDINGS: Final = {
    SystemEventType.SHUTDOWN: Ending.POWERED_OFF,
    SystemEventType.RESET: Ending.RESET,
    SystemEventType.CRASH: Ending.CRASHED,
}


class Watcher(Protocol):
    """What looks at vCPUs. Called in the loop's thread."""

    def begin(self, cycle: PowerCycle, /) -> None:
        """Take the vCPUs of *cycle*, which are about to start."""

    def end(self) -> None:
        """Let go of the vCPUs of the power cycle, which have ended."""


class Debugger(Protocol):
    """A debugger of a machine: `vmm.debug.debugger.Debugger`. Called in the loop's thread."""

    def delays(self, ending: Ending | Exception, end: Callable[[], None], /) -> bool:
        """Return whether the user is to look at the guest first; then *end* ends the cycle."""


class Machine(Closeable):
    """Own the machine that *config* describes. Use as a context manager.

    *devices* make virtio devices besides those of *config*. Construct, `run` and close it in
    *loop*'s thread. *trace* records it. *incoming*, which has made *config*, brings the guest.
    Raises `UserError` and `HostError`.
    """

    def __init__(  # noqa: PLR0913  (what is made before it)
        self,
        config: MachineConfig,
        loop: Loop,
        events: Events,
        devices: Sequence[MakeDevice] = (),
        *,
        trace: Trace | None = None,
        incoming: Incoming | None = None,
    ) -> None:
        self._owned = ExitStack()
        self._restore = self._open_restore(config)
        self._incoming = incoming
        self._config = config = _with_formats(
            config if self._restore is None else self._restore.config(config)
        )
        self._loop = loop
        self._events = events
        self.say: Callable[[str], None] = lambda _line: None
        """Called with each line for the user."""
        self.on_power_on: Callable[[], None] = lambda: None
        """Called at the start of each power cycle: it takes seconds until the guest speaks."""
        self.on_exit: Callable[[int, Exit], None] | None = None
        """Called with each exit, in the vCPU's thread; set it before `run`. Exits are then slow:
        none is answered in C."""
        self.power: PowerCycle | None = None
        """The power cycle that runs."""
        self._devices = devices
        self.watchers: list[Watcher] = []
        """Told of each power cycle. Add to them before `run`."""
        self.debugger: Debugger | None = None
        """Asked before the guest's own endings. Set it before `run`."""
        self._phases = Phases(events, trace, process_start())
        self._phases.passed("options are read")
        self._panic_reason = ""  # empty: the kernel gave none, or there was no panic
        self._cycle = 0
        self._ending: Ending | Exception | None = None
        self._outgoing: Outgoing | None = None
        self._described: Described | None = None
        self.seen: VisibleCpu | None = None
        """What the guest was shown of the CPU, if it comes from elsewhere."""
        self._long = LongWork(loop.call_soon_threadsafe)
        self._pause = Pause(lambda: self._virtio_devices.devices if self._virtio_devices else ())
        with ExitStack() as undo:
            undo.callback(self.close)
            if incoming is not None:
                self._owned.callback(incoming.close)
                undo.push(lambda _kind, error, _trace: incoming.refuse(error))
            self._system = self._owned.enter_context(System.open())
            self._files = self._owned.enter_context(Files(config))
            self.space = self._owned.enter_context(
                AddressSpace(config, self._system, shared=config.shares_memory)
            )
            self._owned.enter_context(sigbus.Teller(loop, self._on_loss))
            self._denied: sandbox.DeniedError | None = None
            self._denials = self._owned.enter_context(sandbox.Teller(loop, self._on_denial))
            self._dump = self._add_dump()
            self._make_board()
            self._baseline = self._read_baseline()
            self._snapshots = self._add_snapshots()
            self._observatory = self._owned.enter_context(self._observe(trace))
            undo.pop_all()
        self._phases.passed("parts are opened")

    # --- parts --------------------------------------------------------------------------------

    def _make_board(self) -> None:
        """Make the bus, and the devices on it."""
        self._bus = MmioBus()
        self._lines: dict[int, SwitchableLine] = {}
        self._fastpath = MmioFastpath()
        self._flash = self._add_flash()
        self.uart = self._add_uart()
        self._rtc = self._add_rtc()
        self._add_pvpanic()
        self._gpio = self._add_gpio()
        self._vmgenid = self._add_vmgenid()
        self._root = self._add_pci()
        self._passthrough = self._add_passthrough()
        self._virtio_devices = self._add_virtio()
        self._finish_address_space()

    def _line(self, spi: int) -> SwitchableLine:
        """Return the line of *spi*, which each power cycle connects to its GIC."""
        return self._lines.setdefault(spi, SwitchableLine())

    def _read_baseline(self) -> Baseline | None:
        """Read the CPU that the guest is to see, and check that this host can show it."""
        if self._config.cpu_baseline is None:
            return None
        from vmm.state.baseline import Baseline

        baseline = Baseline.read(self._config.cpu_baseline)
        baseline.check(self._system, self.space.end)
        return baseline

    def _open_restore(self, config: MachineConfig) -> Restore | None:
        """Open the snapshot to go on from, if any."""
        if config.restore is None:
            return None
        from vmm.machine import snapshot  # noqa: F401  (`_parts`: there is no import later)
        from vmm.machine.restore import Restore

        return self._owned.enter_context(Restore(config.restore))

    def _add_snapshots(self) -> Snapshots | None:
        """Load the memory to go on with, and open the directory for snapshots."""
        if self._restore is not None:
            self._restore.check_host(self._system)
            self._restore.load(self.space)
        if self._config.snapshot is None:
            return None
        from vmm.machine import snapshot

        snapshot.check(self._config, self._virtio_devices)
        return snapshot.Snapshots(self._config.snapshot, self._config, self._system)

    def _add_dump(self) -> MemoryDump | None:
        if self._config.memory_dump is None:
            return None
        from vmm.machine.memory_dump import MemoryDump

        return self._owned.enter_context(MemoryDump(self._config.memory_dump))

    def _add_flash(self) -> Flash | None:
        """Add flash for firmware or for ``--flash``."""
        if self._config.firmware is None and self._config.flash is None:
            return None
        from vmm.machine.flash import Flash

        return self._owned.enter_context(Flash(self._config, self._bus, self._events))

    def _add_uart(self) -> Pl011:
        """Add the serial port. `output` must be drained."""
        sink = self._owned.enter_context(Sink(headroom=FIFO_DEPTH))
        self._words = WordsWatch(sink, self._phases)
        self.output = PanicWatch(
            self._words, self._loop.call_later, self._on_last_words, lambda: self.paused
        )
        uart = Pl011(self._line(layout.SPI_UART), sink, call_later=self._loop.call_later)
        uart.use(DeviceFastpath(self._fastpath, layout.UART, sink))
        sink.on_space = uart.transmit_space
        self._bus.attach(layout.UART, layout.DEVICE_SIZE, uart)
        return uart

    def _add_rtc(self) -> Pl031:
        rtc = Pl031(self._line(layout.SPI_RTC), self._loop.call_later)
        self._owned.callback(rtc.close)
        self._bus.attach(layout.RTC, layout.DEVICE_SIZE, rtc)
        return rtc

    def _add_pvpanic(self) -> None:
        device = PvPanic(self._on_panic, self._events)
        self._bus.attach(layout.PVPANIC, layout.DEVICE_SIZE, device)

    def _add_gpio(self) -> Pl061:
        gpio = Pl061(self._line(layout.SPI_GPIO), self._loop.call_later)
        self._bus.attach(layout.GPIO, layout.DEVICE_SIZE, gpio)
        return gpio

    def _add_vmgenid(self) -> VmGenId:
        device = self._owned.enter_context(VmGenId())
        self._bus.attach(layout.VMGENID, layout.VMGENID_SIZE, device)
        return device

    def _add_pci(self) -> PciRoot | None:
        """Add a PCI host bridge if functions will be behind it."""
        if self._config.transport != "pci" and not self._config.vfio:
            return None
        from vmm.machine.pci_root import PciRoot

        return self._owned.enter_context(PciRoot(self._bus, self._line, self._events))

    def _add_passthrough(self) -> Passthrough | None:
        """Open the devices to pass through, and attach them to the host bridge."""
        if not self._config.vfio or self._root is None:
            return None
        from vmm.passthrough.devices import Passthrough

        found = self._owned.enter_context(
            Passthrough(
                self._config.vfio,
                system=self._system,
                capability=self.space.capability,
                msis=self._root.msis,
                events=self._events,
            )
        )
        self._root.attach_devices(found.functions, self.space)
        found.watch(self._loop, self._on_removal)
        return found

    def _add_virtio(self) -> VirtioDevices | None:
        """Add the virtio devices, if any."""
        config = self._config
        small = config.rng, config.consoles, config.pmems, config.balloon is not None
        large = config.disks, config.nets, config.shares, config.vsock, self._devices
        if not any((*small, *large)):
            return None
        from vmm.machine.virtio_devices import VirtioDevices

        devices = self._owned.enter_context(
            VirtioDevices(
                config,
                self.space.memory,
                self._bus,
                self._loop,
                self._events,
                root=self._root,
                pmems=self.space.pmems,
                others=self._devices,
            )
        )
        self._fastpath.add(devices.answers())
        return devices

    def _finish_address_space(self) -> None:
        """Place PCI's 64-bit window above all memory, and prove device memory if asked to."""
        if self._root is not None:
            limit = 1 << self._system.ipa_bits()
            self.space.reserve(self._root.place(self.space.end, limit))
        self.space.attach(self._bus, self._events)
        self.space.watch(self._loop, self._on_removal)
        if self._config.verify:
            self.space.verify(self._events)

    def _observe(self, trace: Trace | None) -> Observatory:
        devices, root = self._virtio_devices, self._root
        observatory = Observatory(lambda: named(devices, root), trace)
        observatory.add_devices([] if devices is None else devices.devices)
        return observatory

    @property
    def terminal(self) -> PipeChardev | None:
        """The virtio console port of ``--console stdio``, if there is one."""
        return None if self.console is None else self.console.stdio

    @property
    def console(self) -> Console | None:
        """The virtio console device, if there is one."""
        return None if self._virtio_devices is None else self._virtio_devices.console

    @property
    def balloon(self) -> Balloon | None:
        """The memory balloon, if there is one."""
        return None if self._virtio_devices is None else self._virtio_devices.balloon

    def claim(self, base: int, size: int, device: BusDevice) -> None:
        """Let *device* answer accesses to [base, base + size). Raises `UserError`: it is taken."""
        wanted = AddressRange(base, size)
        for region in self.space.memory:
            if wanted.overlaps(AddressRange(region.base, region.size)):
                raise UserError(f"{wanted}: memory is there", "choose another address")
        try:
            self._bus.attach(base, size, device)
        except ValueError as error:
            raise UserError(str(error), "choose another address") from error

    # --- life ---------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """Return the ledger of guest memory as it is mapped now. Raises `KvmError`."""
        flash = [] if self._flash is None else self._flash.shown()
        return self.space.ledger([*flash, *self._vmgenid.shown()])

    def counters(self) -> Counters:
        """Return the counters of exits, queues and interrupts.

        Exits are counted from the first call on, or from power-on with a trace. That call pauses
        the machine: KVM gives no statistics of a vCPU while it is in KVM_RUN, and an idle guest
        does not leave it by itself. In the loop's thread. Raises `HostError`, as `pause` does.
        """
        if self._observatory.counting or self.power is None:
            return self._observatory.counters()
        self.pause()
        try:
            return self._observatory.counters()
        finally:
            self.resume()

    def confine(self, *, shows_ledger: bool) -> None:
        """Let this process ask of the kernel only what the machine still needs (`vmm.sandbox`).

        To be called once all else is open, before `run`. What is imported, opened or asked later
        is done first. *shows_ledger*: `ledger` will be called. Raises `HostError`.
        """
        if self._config.control is not None:  # which can ask for a move
            from vmm.machine import outgoing  # noqa: F401  (there is no import later)
            from vmm.machine.snapshot import describe

            self._described = describe(self._config)
        mode = self._config.sandbox
        if mode != "off":
            watched = bool(self.watchers) or self._phases.traced
            needs_ledger = shows_ledger or watched or bool(self._dump or self._snapshots)
            self.space.before_confined(needs_ledger=needs_ledger)
            if mode == "on":
                self._events.emit("isolated", walls=isolate())
            sandbox.confine(mode)

    def run(self) -> Ending:
        """Power on, run until the guest ends, and return how; a reset is another power cycle.

        Raises `GuestError` for a reset loop, and the error of a vCPU that could not continue.
        """
        for line in self._virtio_devices.notices if self._virtio_devices is not None else ():
            self.say(line)
        quick_resets = 0
        while True:
            began = time.monotonic()
            ending = self._without_panic(self._run_cycle())
            self._events.emit("ended", how=ending.value)
            if ending is not Ending.RESET or not self._config.reboot:
                self._write_dump()
                return ending
            quick_resets = quick_resets + 1 if time.monotonic() - began < LOOP_SECONDS else 0
            if quick_resets >= LOOP_RESETS:
                raise GuestError(
                    f"the guest has reset {LOOP_RESETS} times in a row, each within "
                    f"{LOOP_SECONDS:.0f} s",
                    "its last messages say why; without panic=-1 on its command line it stays",
                )
            self._reset()

    def _run_cycle(self) -> Ending:
        self.on_power_on()
        new = partial(PowerCycle, self._system, self.space, self._config.cpus, self._baseline)
        with self._refusing(), new() as cycle:
            self._phases.passed("the VM is made")
            payload = None if self._incoming else self._fill(cycle)
            if payload is not None:
                self._tell_power_on(cycle, payload)
            del payload  # it is as large as the kernel
            if self._incoming is not None and not self._take_in(self._incoming, cycle):
                return self._ended()
            self.power = cycle
            cycle.at_end(self._forget_power)
            cycle.at_end(self._end_outgoing)
            for watcher in self.watchers:
                watcher.begin(cycle)
                cycle.at_end(watcher.end)
            cycle.at_end(self._observatory.power_off)
            self._observatory.power_on(cycle.vcpus)
            self._phases.passed("the guest is loaded")
            cycle.start(
                self._bus,
                self._fastpath,
                self._lines,
                self._on_vcpu_end,
                self._events,
                pause=self._pause,
                on_exit=self.on_exit,
            )
            if self._incoming is not None:
                self._incoming.started()
            self._loop.run()
            self._phases.passed("the guest runs")
            self._phases.end(self.ledger)
        self._phases.passed("the VM is gone")
        self._denials.tell()  # a guest that powers off at once does not hide it
        return self._ended()

    def _fill(self, cycle: PowerCycle) -> Payload | None:
        """Load the guest into the VM, or the saved state, and connect the devices.

        Returns what was loaded; None: a saved state.
        """
        if self._restore is not None:
            self._connect(cycle)
            self._apply(self._restore, cycle)
            return None
        payload = self._load(cycle)
        self._connect(cycle)
        return payload

    def _ended(self) -> Ending:
        ending, self._ending = self._denied or self._ending, None
        self._cycle += 1
        if isinstance(ending, Exception):
            self._write_dump()
            raise ending
        return ending or Ending.QUIT

    def rehearse(self) -> tuple[list[str], bytes]:
        """Make the VM as `run` does, load the guest, connect the devices, and undo it.

        No vCPU runs. Returns lines about the machine, and its device tree, flattened. Raises what
        `run` raises before its start.
        """
        with PowerCycle(self._system, self.space, self._config.cpus, self._baseline) as cycle:
            self._fill(cycle)
            devices = [] if self._virtio_devices is None else self._virtio_devices.devices
            found = ", ".join(device.name for device in devices) or "none"
            memory, tree = self._config.memory >> 20, cycle.device_tree
            return [
                f"{len(cycle.vcpus)} vCPUs, {memory} MiB of RAM, GICv{cycle.gic.version}",
                f"virtio devices: {found}",
                f"device tree: {len(tree)} bytes" if tree else "device tree: the snapshot has it",
            ], tree

    def _forget_power(self) -> None:
        self.power = None

    def _end_outgoing(self) -> None:
        if self._outgoing is not None:
            self._outgoing.end()

    def parts(self) -> Parts:
        """Return what the machine consists of."""
        from vmm.machine.snapshot import Parts

        return Parts(self.uart, self._rtc, self._gpio, self._vmgenid, self._virtio_devices)

    @property
    def counter(self) -> int | None:
        """The virtual counter at which the guest stands; None: it does not."""
        return self._pause.counter

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Tell the source of a guest that moves here of an error: it keeps the guest."""
        incoming = self._incoming
        try:
            yield
        except VmmError as error:
            if incoming is not None:
                incoming.refuse(error)
            raise

    def _take_in(self, incoming: Incoming, cycle: PowerCycle) -> bool:
        """Take the guest that moves here. Return False if the run ended meanwhile."""
        began = time.monotonic()
        self._connect(cycle)
        self.seen = incoming.cpu
        taken = incoming.apply(cycle, self.parts(), self.space, self.ledger(), self._loop)
        if taken:
            self._events.emit("moved-here", seconds=time.monotonic() - began)
        return taken

    def migrate(self, sockets: Sequence[socket.socket], goal: float) -> None:
        """Move the guest over connected *sockets* to a machine with ``--incoming``.

        In the loop's thread; returns at once. *goal*: seconds that the guest may stand still. When
        it runs there, `run` returns `Ending.MOVED`. If it does not come to that, it goes on here;
        if the connection is lost when the destination may run it already, it stays paused:
        `strayed`. Raises `UserError` if it cannot be moved, and `HostError`.
        """
        if self.power is None or self._described is None or self._outgoing is not None:
            why = "moves already" if self._outgoing is not None else "does not run"
            raise UserError(f"migrate: the machine {why}")
        from vmm.machine.outgoing import Outgoing

        self._outgoing = Outgoing(
            self,
            self._config,
            self._described,
            sockets,
            system=self._system,
            loop=self._loop,
            events=self._events,
            goal=goal,
            ledger=self.ledger(),
            seen=self.seen or (self._baseline.cpu if self._baseline else None),
            on_end=self._on_moved,
        )
        self._outgoing.start()

    def _on_moved(self, result: Gone | VmmError) -> None:
        if not isinstance(result, VmmError):
            self._events.emit("moved", **result._asdict())
            self.say(f"the guest has moved; it stood still for {result.downtime:.2f} s")
            self._end(self._cycle, Ending.MOVED)
        elif self._outgoing is not None and self._outgoing.gave_up:
            self._events.emit("migration-unknown", error=str(result))
            self.say(f"the guest stays paused, as the destination may run it: {result}")
        else:
            self._stay(result)

    def _stay(self, error: VmmError) -> None:
        """Go on after a move that has failed by *error*."""
        try:
            self.take_back()
        except VmmError as worse:
            self._events.emit("migration-unknown", error=str(worse))
            self.say(f"the guest has not moved, and stays paused: {worse}")
        else:
            self._events.emit("migration-failed", error=str(error))
            self.say(f"the guest has not moved, and goes on: {error}")

    @property
    def strayed(self) -> bool:
        """Whether the guest stays paused because it, or one of its disks, may be elsewhere."""
        return self._outgoing is not None and self._outgoing.ended

    def take_back(self) -> None:
        """Let the guest go on here: it does not run elsewhere. In the loop's thread.

        Raises `UserError` if another machine has one of its disks.
        """
        if self._outgoing is not None:
            self._outgoing.go_on()
            self._outgoing = None

    def _apply(self, restore: Restore, cycle: PowerCycle) -> None:
        """Give the cycle and the devices the saved state."""
        self.seen = restore.cpu
        seconds = restore.apply(cycle, self.parts())
        sigbus.check()
        made_by = restore.made_by
        self._events.emit(
            "restored",
            directory=str(self._config.restore),
            seconds=seconds,
            program=made_by.program,
            kernel=made_by.kernel,
            time=made_by.time,
        )

    def save(self, say: Callable[[str], object]) -> None:
        """Write a snapshot into the directory of ``--snapshot``; *say* gets a line for the user.

        In the loop's thread, which has its turn meanwhile. The machine is paused until the
        snapshot is written, and ends then if the option says so. A snapshot that fails leaves the
        one before whole, and is an event.
        """
        self._long.begin(self._save(say))

    def _save(self, say: Callable[[str], object]) -> Generator[None, None, None]:
        try:
            taken = yield from self.snapshot()
        except VmmError as error:
            say(f"no snapshot: {error}")
        else:
            size, seconds = taken.stored >> 20, taken.seconds
            say(f"the snapshot is written: {size} MiB of memory in {seconds:.1f} s")

    def snapshot(self) -> Generator[None, None, Taken]:
        """Write a snapshot, as `save` does, in parts; see `vmm.long_work`.

        Raises `UserError` and `HostError`: there is none.
        """
        if self._snapshots is None:
            raise UserError("there is nowhere to write one", "that takes --snapshot")
        if self.power is None:
            raise UserError("the machine is not running")
        take = partial(self._snapshots.take, self.power, self.parts(), self.space.ram_region)
        try:
            taken = yield from self._hold(lambda ledger: take(ledger, self._pause.counter))
        except VmmError as error:
            self._events.emit("snapshot-failed", error=str(error))
            raise
        self._events.emit("snapshot", **taken._asdict())
        if self._snapshots.ends:
            self._end(self._cycle, Ending.SAVED)
        else:
            self.resume()
        return taken

    def dump_memory(self, fd: int) -> Generator[None, None, None]:
        """Write RAM to the file *fd*, as ``--memory-dump`` does; the machine is paused meanwhile.

        In parts; see `vmm.long_work`. Call `confine` with *shows_ledger* before. Raises `UserError`
        if the power cycle ends meanwhile, and `HostError`.
        """
        try:
            yield from self._hold(lambda ledger: write_ram(fd, self.space.ram_region, ledger))
        except OSError as error:
            raise HostError(f"the memory dump: {error.strerror}", "free some space") from error
        self.resume()

    def _hold(
        self, start: Callable[[Ledger], Generator[None, None, Result]]
    ) -> Generator[None, None, Result]:
        """Hold the machine and do the work that *start* returns. The caller lets go of it.

        Raises `UserError` if the power cycle ends meanwhile: guest memory is then another's.
        Whenever this raises, the machine is let go of.
        """
        ledger = self.ledger()  # the first one asks the host, which takes its time
        cycle = self._cycle
        with ExitStack() as held:
            self.pause()
            held.callback(self.resume)
            work = start(ledger)
            held.callback(work.close)
            while True:
                try:
                    next(work)
                except StopIteration as end:
                    held.pop_all()
                    result: Result = end.value
                    return result
                yield
                if self._cycle != cycle or self._ending is not None:
                    raise UserError("the machine was reset or has ended meanwhile")

    def _write_dump(self) -> None:
        """Write ``--memory-dump``, if it is asked for. No vCPU runs. Raises `HostError`."""
        if self._dump is not None:
            self._dump.write(self.space.ram_region, self.ledger())

    def _without_panic(self, ending: Ending) -> Ending:
        """Return *ending*, or PANICKED for a reset by a kernel that panicked."""
        watching = ending is Ending.RESET and self._config.panic == "exit"
        reason = self.output.reason() if watching else None
        self.output.restart()
        self._words.restart()
        if reason is None:
            return ending
        self._tell_panic(reason)
        return Ending.PANICKED

    def _connect(self, cycle: PowerCycle) -> None:
        """Connect the parts that need memory slots, ioeventfds or irqfds to the cycle's VM."""
        if self._flash is not None:
            cycle.at_end(self._flash.unplug)
            self._flash.plug(cycle.slots)
        cycle.at_end(self._vmgenid.unplug)
        self._vmgenid.plug(cycle.slots)
        if self._virtio_devices is not None:
            self._virtio_devices.connect(cycle.vm)
            cycle.cancel_waits = self._virtio_devices.cancel_waits
        if self._root is not None:
            cycle.at_end(self._root.disconnect)
            self._root.connect(cycle.vm, has_its=cycle.gic.has_its)
        if self._passthrough is not None:
            cycle.at_end(self._passthrough.disconnect)
            self._passthrough.connect(cycle.vm, cycle.slots, self.space.dma)

    def _load(self, cycle: PowerCycle) -> Payload:
        payload = self._files.read()
        nodes = [self._vmgenid.node()]
        nodes += [] if self._virtio_devices is None else self._virtio_devices.nodes()
        if self._root is not None:
            nodes += self._root.nodes(has_its=cycle.gic.has_its)
        if self._flash is not None:
            nodes.append(self._flash.node())
        cycle.load(payload, nodes)
        sigbus.check()
        return payload

    def _tell_power_on(self, cycle: PowerCycle, payload: Payload) -> None:
        config = self._config
        if self._cycle == 0 and self.terminal is not None and config.command is None:
            self._check_keyboard(payload.cmdline or "")
        self._events.emit(
            "power-on",
            image=str(config.image or config.firmware),
            format=str(payload.kernel or "firmware"),
            cpus=config.cpus,
            memory=config.memory,
            gic=cycle.gic.version,
            cmdline=payload.cmdline,
        )

    def _check_keyboard(self, cmdline: str) -> None:
        """Tell the user if a guest with ``--console stdio`` may not listen to it."""
        if self._config.firmware is None and "console=hvc0" not in cmdline.split():
            self.say(
                "--console stdio: what you type goes to hvc0, but the kernel's command line has no "
                "console=hvc0; add it with --cmdline, or type C-a c for the serial port"
            )

    def _reset(self) -> None:
        if self._restore is not None:
            self._restore.forget()
            self._restore = None
        self._incoming = self.seen = None
        if self._virtio_devices is not None:
            self._virtio_devices.reset()  # before its memory goes
        if self._root is not None:
            self._root.reset()
        self.space.discard()
        if self._flash is not None:
            self._flash.reset()
        self.uart.reset()
        self._rtc.reset()
        self._gpio.reset()

    def pause(self) -> None:
        """Hold the machine still; see `vmm.machine.pause`. In the loop's thread; calls nest.

        May come before `run`: the vCPUs then wait before their first instruction. Raises
        `HostError` if a vCPU does not leave the guest.
        """
        self._pause.pause()

    def resume(self) -> None:
        """Undo one `pause`. In the loop's thread. Raises ValueError if there was none."""
        self._pause.resume()

    @property
    def paused(self) -> bool:
        """Whether somebody holds the machine."""
        return self._pause.held

    @property
    def holders(self) -> int:
        """How many hold the machine: `pause` without `resume`."""
        return self._pause.holders

    def press_power_button(self) -> None:
        """Press the power button: what the guest does then is its own affair.

        In the loop's thread. Raises `UserError`: the guest does not listen to the button.
        """
        if self.power is None or not self._gpio.press(layout.POWER_KEY):
            raise UserError(
                "the guest does not listen to its power button",
                "Linux needs gpio-keys and PL061; without the button: pyvmm stop",
            )
        self._events.emit("power-button")

    def end(self, ending: Ending | Exception) -> None:
        """End the power cycle; `run` returns *ending*. Thread-safe; the first call counts."""
        cycle = self._cycle
        self._loop.call_soon_threadsafe(lambda: self._end(cycle, ending))

    def _end(self, cycle: int, ending: Ending | Exception) -> None:
        if self._ending is not None or cycle != self._cycle:
            return
        if self.debugger is None or not self.debugger.delays(ending, lambda: self.end(ending)):
            self._ending = ending
            self._loop.stop()

    def _on_vcpu_end(self, vcpu: int, reason: Reason) -> None:
        if isinstance(reason, SystemEvent):
            kind = SystemEventType(reason.type)
            self._events.emit("system-event", vcpu=vcpu, type=kind.name, flags=reason.flags)
            self.end(ENDINGS.get(kind, Ending.CRASHED))
        else:
            cycle = self._cycle
            self._loop.call_soon_threadsafe(lambda: self._fail(cycle, vcpu, reason))

    def _fail(self, cycle: int, vcpu: int, reason: Exception) -> None:
        if isinstance(reason, KvmError) and reason.errno == errno.EFAULT:
            reason = self.space.explain_fault(reason)
        self._events.emit("vcpu-failed", vcpu=vcpu, error=str(reason))
        self._end(cycle, reason)

    def _on_loss(self, error: sigbus.LostError) -> None:
        """End the machine: a page of a file that is the guest's memory is gone."""
        self._events.emit("mapping-lost", file=error.name, offset=error.offset)
        self.end(error)

    def _on_denial(self, denial: sandbox.Denial) -> None:
        """Tell of a call that the process's policy does not know; ``on`` ends the machine."""
        self._events.emit("sandbox-denied", **denial._asdict())
        if self._config.sandbox == "on":
            self._denied = self._denied or sandbox.DeniedError(denial)
            self.end(self._denied)

    def _on_removal(self, bdf: str) -> None:
        self._events.emit("device-removed", device=bdf)
        self.say(f"the host took {bdf} back; its memory now reads as ones")

    def _on_panic(self) -> None:
        """Take a report of the guest's pvpanic driver."""
        if self._config.panic == "exit":
            self.end(Ending.PANICKED)

    def _on_last_words(self, reason: str) -> None:
        """Take a panic that was seen on the console."""
        if self._config.panic == "exit":
            self._tell_panic(reason)
            self.end(Ending.PANICKED)

    def _tell_panic(self, reason: str) -> None:
        self._panic_reason = reason
        self._events.emit("panic", report="console", reason=reason)

    def told(self, ending: Ending) -> str:
        """Return how the guest has ended, with the reason of a panic, as words for the user."""
        reason = f": {self._panic_reason}" if self._panic_reason else ""
        return f"the guest has {ending.value}{reason}"

    def close(self) -> None:
        """Take the machine apart. Idempotent."""
        self._long.close()
        self._owned.close()


def _with_formats(config: MachineConfig) -> MachineConfig:
    """Detect the formats of disk images that are not yet known. Raises `UserError`."""
    if not config.disks:
        return config
    from vmm.virtio.block.image_format import with_formats

    return with_formats(config)
