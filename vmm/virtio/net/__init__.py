"""Network devices (VIRTIO 1.2, 5.1), over a TAP interface or passt."""
