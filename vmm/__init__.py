"""pyvmm: a userspace virtual machine monitor on KVM for arm64 hosts."""
