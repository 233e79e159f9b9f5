"""Emulated hosts from outside: profiles, QEMU, and commands that run in them."""
