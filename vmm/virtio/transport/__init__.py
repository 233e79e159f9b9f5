"""The ways to attach a virtio device: virtio-mmio (VIRTIO 1.2, 4.2) and virtio-pci (4.1)."""
