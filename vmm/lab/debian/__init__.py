"""Debian's packages: fetched, unpacked, made into root file systems and module archives."""
