"""One machine: its parts, its address space, its vCPU threads, its life from reset to reset."""
