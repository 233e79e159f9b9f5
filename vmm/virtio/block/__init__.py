"""Block devices (VIRTIO 1.2, 5.2): raw images in C, other formats by qemu-storage-daemon."""
