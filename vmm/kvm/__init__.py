"""KVM, one class per kind of file descriptor: system, VM, vCPU, device."""
