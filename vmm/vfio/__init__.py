"""Userspace's side of VFIO: PCI devices to have to itself. Start at `vmm.vfio.device`."""
