"""Userspace's side of VFIO: PCI devices that a program has to itself. Start at `vmm.vfio.device`."""
