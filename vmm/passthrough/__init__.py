"""The guest's side of VFIO devices (device assignment): whole devices, or regions as memory.

devices          all devices of a machine: address space, resets, from power-on to power-off
function         one device as a function of the guest's PCI host
config_space     its configuration space: bits of the device's, bits of ours
capability_list  which capabilities the guest sees
bar              its regions as BARs: memory slots while the guest decodes them
region_memory    one region: decided, mapped, placed, plugged, proved
rom              the expansion ROM
peers            DMA from device to device
interrupts, msi  INTx, MSI and MSI-X, from VFIO's eventfds into KVM
memslot_survey   every kind of memory of one host, registered and proved
"""
