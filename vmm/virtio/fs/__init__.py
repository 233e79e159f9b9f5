"""File system devices (VIRTIO 1.2, 5.11), served by virtiofsd."""
