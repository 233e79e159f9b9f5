"""Your own virtio device, over the queues and transports that are there; the driver is Linux's.

    pyvmm lab exec fwb -- python3 examples/own_virtio_device.py guest.img

It says that it is an entropy device, whose driver any Linux has, and gives no entropy at all.
A class of yours has its features, its configuration and `serve`; the base class has the rest of
VIRTIO 1.2: negotiation, status, split and packed rings, reset, interrupts, over MMIO or PCI.
"""

from itertools import cycle, islice

import vmm
from vmm._native import lib
from vmm.events import Events
from vmm.virtio.device import VirtioDevice
from vmm.virtio.queue import MemoryMap, Queue

TEXT = b"no entropy. "
MOST = 4096


class Boring(VirtioDevice):
    """A source of one text, again and again."""

    device_id = lib.VIRTIO_ID_RNG

    def __init__(self, name: str, memory: MemoryMap, events: Events) -> None:
        super().__init__(name, memory, events, [64])
        self._text = cycle(TEXT)

    def serve(self, index: int, queue: Queue) -> None:  # noqa: ARG002  (it has one queue)
        """Fill what the driver has made available."""
        for chain in queue.batch(queue.size):
            data = bytes(islice(self._text, min(chain.writable, MOST)))
            queue.push(chain.id, chain.write(data))


with (
    vmm.program("IMAGE") as (image,),
    vmm.Machine(image, memory="512M", devices=[Boring]) as machine,
):
    machine.start()
    machine.console.expect(r"guest:\S*# ")
    machine.console.send("dd if=/dev/hwrng bs=24 count=1 2>/dev/null | hexdump -C\n")
    print(machine.console.expect(r"0000\S* .*\|.*\|")[0].decode().strip())
    machine.console.send("exit\n")
    machine.wait(timeout=300)
