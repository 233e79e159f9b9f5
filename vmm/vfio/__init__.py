"""The host's side of VFIO devices. Start at `vmm.vfio.device`."""
