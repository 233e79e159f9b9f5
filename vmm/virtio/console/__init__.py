"""Console devices (VIRTIO 1.2, 5.3): ports, and what each is joined to."""
