"""How a virtio device is attached: virtio-mmio (VIRTIO 1.2, 4.2) or virtio-pci (4.1)."""
