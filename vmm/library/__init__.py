"""``import vmm``: machines, here or in an emulated host, driven from Python. See README.md."""
