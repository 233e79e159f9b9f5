"""PCI Express: a host bridge with ECAM, and what the functions behind it have in common."""
