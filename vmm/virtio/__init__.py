"""Virtio: queues, devices and how they are attached (VIRTIO 1.2)."""
