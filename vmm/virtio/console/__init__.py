"""Console devices (VIRTIO 1.2, 5.3): ports, and the host's end of each."""
