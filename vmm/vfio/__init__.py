"""Userspace's side of VFIO: PCI devices that a program may have to itself. See `device.open_device`."""
