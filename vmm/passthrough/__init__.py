"""Whole devices of the host for the guest (device assignment): a PCI function over VFIO.

devices        owns them all: their address space, their resets, from power-on to power-off
function       one device as a function of the guest's PCI host
configuration  its configuration space: what is the device's, and what is ours
capabilities   the lists of capabilities: what of them the guest sees
bars           its regions as BARs: memory slots that follow what the guest writes
rom            the expansion ROM
peers          DMA from device to device
interrupts     INTx, MSI and MSI-X, by eventfds from VFIO straight into KVM
"""
