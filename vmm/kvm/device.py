"""A device that KVM emulates: an interrupt controller, or the VFIO pseudo device."""

from __future__ import annotations

from vmm.kvm.fd import AttributeFd


class Device(AttributeFd):
    """A KVM device's file descriptor. Attributes are its whole interface."""
