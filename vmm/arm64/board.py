"""The board's device tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm.arm64 import gic, layout
from vmm.fdt import Node, Value, reg, u32, u64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.address_range import AddressRange

CLOCK_PHANDLE = 3
GPIO_PHANDLE = 4
LOCAL_DISTANCE = 10
REMOTE_DISTANCE = 20
"""Between NUMA nodes, in the units of ACPI's SLIT: Linux's defaults."""

KEY_POWER = 116
"""Linux's number of the key (input-event-codes.h)."""

CLOCK_HZ = 24_000_000
"""The peripherals' clock, in Hz. No device here depends on it."""


class Board(NamedTuple):
    """A board to describe.

    mpidrs      the affinity of each CPU, in the order of their numbers
    interrupts  the GIC's node
    cmdline     bootargs; None: firmware decides
    kaslr_seed  8 random bytes; Linux wipes it once read
    rng_seed    random bytes, of any number; wiped likewise
    extra       nodes of devices beyond the board's own
    numa_nodes  node 0 has the CPUs and RAM; each other is for memory that a device's driver adds
    """

    ram: AddressRange
    mpidrs: Sequence[int]
    interrupts: Node
    gic_version: int
    has_pmu: bool
    cmdline: str | None
    initrd: AddressRange | None
    kaslr_seed: bytes
    rng_seed: bytes
    extra: Sequence[Node] = ()
    numa_nodes: int = 1


def device_tree(board: Board) -> Node:
    """Return the tree of *board*, for `vmm.fdt.dumps`."""
    return Node(
        "",
        {
            "compatible": "linux,dummy-virt",
            "model": "pyvmm",
            "#address-cells": 2,
            "#size-cells": 2,
            "interrupt-parent": gic.PHANDLE,
            "dma-coherent": None,
        },
        [
            _chosen(board),
            Node(
                f"memory@{board.ram.base:x}",
                {
                    "device_type": "memory",
                    "reg": reg((board.ram.base, board.ram.size)),
                    **_home(board),
                },
            ),
            _cpus(board),
            *([_distances(board.numa_nodes)] if board.numa_nodes > 1 else []),
            Node("psci", {"compatible": ["arm,psci-1.0", "arm,psci-0.2"], "method": "hvc"}),
            _timer(board),
            *([_pmu(board)] if board.has_pmu else []),
            board.interrupts,
            Node(
                "clock-24000000",
                {
                    "compatible": "fixed-clock",
                    "#clock-cells": 0,
                    "clock-frequency": CLOCK_HZ,
                    "clock-output-names": "clk24mhz",
                    "phandle": CLOCK_PHANDLE,
                },
            ),
            _uart(),
            _rtc(),
            *_gpio(),
            Node(
                f"pvpanic@{layout.PVPANIC:x}",
                {"compatible": "qemu,pvpanic-mmio", "reg": reg((layout.PVPANIC, 2))},
            ),
            *board.extra,
        ],
    )


def coherent_memory(ranges: Sequence[AddressRange]) -> list[Node]:
    """Return nodes for device memory that is as cacheable as RAM: memory, but reserved.

    Linux then has struct page for it, maps it Normal Write-Back, and leaves it to drivers that
    refer to its node (devicetree bindings reserved-memory.yaml).
    """
    if not ranges:
        return []
    reserved = [
        Node(f"coherent@{extent.base:x}", {"reg": reg((extent.base, extent.size))})
        for extent in ranges
    ]
    return [
        *(
            Node(
                f"memory@{extent.base:x}",
                {"device_type": "memory", "reg": reg((extent.base, extent.size))},
            )
            for extent in ranges
        ),
        Node("reserved-memory", {"#address-cells": 2, "#size-cells": 2, "ranges": None}, reserved),
    ]


def flash(banks: Sequence[AddressRange]) -> Node:
    """Return the node of flash with two 16-bit chips a bank (bindings mtd/mtd-physmap.yaml)."""
    return Node(
        f"flash@{banks[0].base:x}",
        {
            "compatible": "cfi-flash",
            "reg": reg(*((bank.base, bank.size) for bank in banks)),
            "bank-width": 4,
        },
    )


def vmgenid() -> Node:
    """Return the node of the VM generation ID (bindings rng/microsoft,vmgenid.yaml)."""
    return Node(
        f"rng@{layout.VMGENID:x}",
        {
            "compatible": "microsoft,vmgenid",
            "reg": reg((layout.VMGENID, layout.DEVICE_SIZE)),
            "interrupts": gic.spi(layout.SPI_VMGENID, edge=True),
        },
    )


def virtio_mmio(slots: int) -> list[Node]:
    """Return nodes of the first *slots* virtio-mmio transports (bindings virtio/mmio.yaml).

    Their interrupts are edges: KVM pulses the line for each signal of an irqfd.
    """
    return [
        Node(
            f"virtio@{layout.virtio(slot):x}",
            {
                "compatible": "virtio,mmio",
                "reg": reg((layout.virtio(slot), layout.VIRTIO_SIZE)),
                "interrupts": gic.spi(layout.SPI_VIRTIO + slot, edge=True),
            },
        )
        for slot in range(slots)
    ]


def _chosen(board: Board) -> Node:
    properties: dict[str, Value] = {
        **({} if board.cmdline is None else {"bootargs": board.cmdline}),
        "stdout-path": f"/serial@{layout.UART:x}",
        "kaslr-seed": board.kaslr_seed,
        "rng-seed": board.rng_seed,
    }
    if board.initrd is not None:
        properties["linux,initrd-start"] = u64(board.initrd.base)
        properties["linux,initrd-end"] = u64(board.initrd.end)
    return Node("chosen", properties)


def _cpus(board: Board) -> Node:
    wide = any(mpidr >> 32 for mpidr in board.mpidrs)
    cells = 2 if wide else 1
    return Node(
        "cpus",
        {"#address-cells": cells, "#size-cells": 0},
        [
            Node(
                f"cpu@{mpidr:x}",
                {
                    "device_type": "cpu",
                    "compatible": "arm,armv8",
                    "enable-method": "psci",
                    "reg": mpidr.to_bytes(4 * cells, "big"),
                    **_home(board),
                },
            )
            for mpidr in board.mpidrs
        ],
    )


def _home(board: Board) -> dict[str, Value]:
    """Return the property that places a node in NUMA node 0, if there are others."""
    return {"numa-node-id": u32(0)} if board.numa_nodes > 1 else {}


def _distances(nodes: int) -> Node:
    """Return the distances of NUMA nodes, by which Linux knows nodes without memory."""
    matrix = b"".join(
        u32(one, other, LOCAL_DISTANCE if one == other else REMOTE_DISTANCE)
        for one in range(nodes)
        for other in range(nodes)
    )
    return Node("distance-map", {"compatible": "numa-distance-map-v1", "distance-matrix": matrix})


def _cpu_mask(board: Board) -> int:
    return (1 << len(board.mpidrs)) - 1 if board.gic_version == 2 else 0


def _timer(board: Board) -> Node:
    timers = (
        layout.PPI_SECURE_TIMER,
        layout.PPI_PHYSICAL_TIMER,
        layout.PPI_VIRTUAL_TIMER,
        layout.PPI_HYP_TIMER,
    )
    return Node(
        "timer",
        {
            "compatible": "arm,armv8-timer",
            "interrupts": b"".join(gic.ppi(timer, _cpu_mask(board)) for timer in timers),
            "always-on": None,
        },
    )


def _pmu(board: Board) -> Node:
    interrupts = gic.ppi(layout.PPI_PMU, _cpu_mask(board))
    return Node("pmu", {"compatible": "arm,armv8-pmuv3", "interrupts": interrupts})


def _primecell(kind: str, base: int, spi: int, clocks: Sequence[str]) -> dict[str, Value]:
    return {
        "compatible": [kind, "arm,primecell"],
        "reg": reg((base, layout.DEVICE_SIZE)),
        "interrupts": gic.spi(spi),
        "clocks": CLOCK_PHANDLE.to_bytes(4, "big") * len(clocks),
        "clock-names": list(clocks),
    }


def _uart() -> Node:
    properties = _primecell("arm,pl011", layout.UART, layout.SPI_UART, ["uartclk", "apb_pclk"])
    return Node(f"serial@{layout.UART:x}", properties)


def _gpio() -> list[Node]:
    """Return the GPIO, and the power button behind it (bindings gpio/gpio-keys.yaml)."""
    properties = _primecell("arm,pl061", layout.GPIO, layout.SPI_GPIO, ["apb_pclk"])
    properties |= {"#gpio-cells": 2, "gpio-controller": None, "phandle": GPIO_PHANDLE}
    properties |= {"interrupt-controller": None, "#interrupt-cells": 2}
    button: dict[str, Value] = {
        "label": "power button",
        "linux,code": KEY_POWER,
        "gpios": u32(GPIO_PHANDLE, layout.POWER_KEY, 0),
    }
    return [
        Node(f"gpio@{layout.GPIO:x}", properties),
        Node("gpio-keys", {"compatible": "gpio-keys"}, [Node("power-button", button)]),
    ]


def _rtc() -> Node:
    properties = _primecell("arm,pl031", layout.RTC, layout.SPI_RTC, ["apb_pclk"])
    return Node(f"rtc@{layout.RTC:x}", properties)
