"""PCI Express: a host bridge with ECAM, and what functions behind it have in common."""
